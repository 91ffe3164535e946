"""`sgl-omni scale`: changes the number of replicas of a group while the server runs."""

from __future__ import annotations

from typing import Annotated

import typer

from omni_pipeline.commands.orders import Pid, answers
from omni_pipeline.supervision.scaling import SCALING, ScaleOrder


def scale(
    group: Annotated[str, typer.Argument(help="Name of the group, such as voice.", show_default=False)],
    replicas: Annotated[int, typer.Argument(min=1, help="New number of replicas of the group.", show_default=False)],
    pid: Pid = None,
) -> None:
    """Add or remove replicas of a group of stages, while the server runs on this machine. No request fails.

    The setting groups.GROUP.max_replicas is the maximum number of replicas of a group. Run this command as the user of
    the server, with the same TMPDIR.
    """
    for text in answers(SCALING, ScaleOrder(group, replicas), pid):
        print(text, flush=True)
