"""Defines the body of `GET /health`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from omni_pipeline.supervision.worker_state import WorkerReport


class StageHealth(Struct):
    live_requests: int
    received: int


Status: TypeAlias = Literal["ok", "degraded", "starting", "unavailable", "unhealthy", "stopping"]


class HealthReport(Struct):
    """The body of `GET /health`. The statuses ``ok`` and ``degraded`` come with HTTP 200, and all others with 503.

    ``degraded`` means that every request can be answered, although at least one replica of a group of stages cannot
    work now.
    """

    status: Status
    problem: str | None
    workers: dict[str, WorkerReport]
    stages: dict[str, StageHealth]


SERVING: frozenset[Status] = frozenset({"ok", "degraded"})
"""The statuses of a server that can answer every request."""
