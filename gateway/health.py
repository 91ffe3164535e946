"""Whether the server can answer now, and why not."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from gateway.pipeline import Pipeline


class StageHealth(Struct):
    live_requests: int
    received: int


class Report(Struct):
    """The body of `GET /health`; any status but ``ok`` goes with HTTP 503."""

    status: Literal["ok", "starting", "unavailable", "stopping"]
    problem: str | None
    stages: dict[str, StageHealth]


class Health:
    """What the server knows about itself.

    Attributes:
        warm: Whether the warm-up request has been answered.
        stopping: Whether it finishes what it has and takes nothing new.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.warm = False
        self.stopping = False
        self._pipeline = pipeline

    def report(self) -> Report:
        """The state of this moment."""
        problem = self._pipeline.problem
        status: Literal["ok", "starting", "unavailable", "stopping"] = "ok"
        if self.stopping:
            status, problem = "stopping", "the server is shutting down"
        elif problem is not None:
            status = "unavailable"
        elif not self.warm:
            status, problem = "starting", "the warm-up request has not been answered yet"
        stages = {
            name: StageHealth(live_requests=stats.live_requests, received=stats.received)
            for name, stats in self._pipeline.stats.items()
        }
        return Report(status=status, problem=problem, stages=stages)
