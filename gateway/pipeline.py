"""What the gateway needs of a running pipeline; `omni_pipeline.supervision.pipeline.Supervisor` provides it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from omni_pipeline.errors import ErrorInfo
from omni_pipeline.supervision.worker_state import WorkerReport
from omni_pipeline.wire.counters import EdgeStats
from omni_pipeline.wire.messages import Failed, StageStats, Work
from omni_pipeline.wire.trace_notes import Notes


class Pipeline(Protocol):
    """The stages, seen from the main process's event loop. No method blocks."""

    def connect(
        self, deliver: Callable[[Work | Failed], None], lost: Callable[[frozenset[str], ErrorInfo], None]
    ) -> None:
        """Say who takes what comes back.

        Args:
            deliver: Called with every message for the collector, in order for each request.
            lost: Called with the stages that a dead worker ran, and the error its requests should end with.
        """

    def trace(self, noted: Callable[[Notes], None]) -> None:
        """Say who takes what the workers, and the main process's inbox, note about requests, when that is on."""

    async def wait_for(self, stages: Collection[str] | None, seconds: float | None) -> None:
        """Wait until `stages`, or all there are, can work.

        Args:
            seconds: How long; None waits for ever. When it is known to take longer, nobody is kept waiting.

        Raises:
            OmniError: (503, with the time to wait) they cannot, or the service is stopping.
        """

    def submit(self, request_id: str, body: Any, stages: Collection[str] | None = None) -> None:
        """Send a request body to the entry stage.

        Args:
            stages: Those that the request needs; None for all.

        Raises:
            OmniError: (503, with the time to wait) one of them cannot work now.
        """

    def abort(self, request_id: str) -> None:
        """Make every worker forget a request."""

    @property
    def problem(self) -> str | None:
        """Why the pipeline cannot serve everything now, or None."""

    @property
    def workers(self) -> Mapping[str, WorkerReport]:
        """How each worker is, by name."""

    @property
    def stats(self) -> Mapping[str, StageStats]:
        """The latest figures of each stage, by name."""

    @property
    def edges(self) -> Iterable[EdgeStats]:
        """The latest figures of each edge of the graph."""

    @property
    def restarts(self) -> Mapping[str, int]:
        """How often each worker has been started again, by name."""

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids of the workers that run, by name."""
