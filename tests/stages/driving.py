"""Drives a stage as the worker's loop does: sleeps until the stage's own processes answer, and then calls the stage's
`step`.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from typing import Any

from omni_pipeline.wire.messages import Claim

# Maximum seconds for the work of a test. The work of every test takes far less time.
PATIENCE_SECONDS = 60.0

# Maximum seconds after which the loop checks the stage again; see `WaitsOutside`.
LOOK_SECONDS = 0.2


def finish(stage: Any) -> list[Any]:
    """Drives the stage until it holds no more requests. Returns all messages of the stage."""
    return list(messages(stage, lambda: not stage.live()))


def messages(stage: Any, over: Callable[[], bool]) -> Iterator[Any]:
    """Drives the stage, and yields its messages until `over` returns True. `Claim` messages are granted at once, and
    are not yielded.
    """
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
