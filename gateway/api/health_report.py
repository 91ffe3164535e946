"""Defines the body of `GET /health`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from omni_pipeline.supervision.worker_state import WorkerReport


class StageHealth(Struct):
    live_requests: int
    received: int


Status: TypeAlias = Literal["ok", "starting", "unavailable", "unhealthy", "stopping"]


class HealthReport(Struct):
    """The body of `GET /health`; any status except ``ok`` comes with HTTP 503."""

    status: Status
    problem: str | None
    workers: dict[str, WorkerReport]
    stages: dict[str, StageHealth]
