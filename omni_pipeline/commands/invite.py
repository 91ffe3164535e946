"""`sgl-omni invite`: makes an invitation, with which another host can join a server that runs on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from omni_pipeline.commands.orders import Pid, answers
from omni_pipeline.hosts.cluster import INVITING, InviteOrder


def invite(
    host: Annotated[str, typer.Argument(help="Name of the host in the configuration.", show_default=False)],
    pid: Pid = None,
) -> None:
    """Print an invitation for another host, as one line. With this invitation, the host can join the server once.

    The invitation is secret. For example: sgl-omni invite b | ssh b sgl-omni join

    Run this command as the user of the server, on the server's machine, with the same TMPDIR.
    """
    for text in answers(INVITING, InviteOrder(host), pid):
        print(text, flush=True)
