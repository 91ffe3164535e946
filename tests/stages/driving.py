"""Drives a stage as the worker's loop does: it sleeps until the stage's own processes answer, and then lets the stage
step.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from typing import Any

from omni_pipeline.wire.messages import Claim

# Far more than any work of these tests takes.
PATIENCE_SECONDS = 60.0

# The loop looks at the stage at least this often; see `WaitsOutside`.
LOOK_SECONDS = 0.2


def finish(stage: Any) -> list[Any]:
    """The messages of all requests that the stage holds."""
    return list(messages(stage, lambda: not stage.live()))


def messages(stage: Any, over: Callable[[], bool]) -> Iterator[Any]:
    """The stage's messages as they come, until `over`. Claims are granted at once, and are not among the messages."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not over():
        assert time.monotonic() < deadline, "the stage does not go on"
        if stage.has_work:
            for message in list(stage.step()):
                if isinstance(message, Claim):
                    stage.grant(message.request_id)
                else:
                    yield message
        else:
            select.select([stage.waits_on], [], [], LOOK_SECONDS)
