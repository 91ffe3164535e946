"""Declares the gateway's interface to a pipeline; `omni_pipeline.supervision.pipeline.Supervisor` implements it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from omni_pipeline.errors import ErrorInfo
from omni_pipeline.supervision.worker_state import WorkerReport
from omni_pipeline.wire.counters import EdgeStats
from omni_pipeline.wire.messages import Claim, Failed, StageStats, Work
from omni_pipeline.wire.trace_notes import Notes


class Pipeline(Protocol):
    """The stages, as the event loop of the main process uses them. No method blocks."""

    def connect(
        self, deliver: Callable[[Work | Failed], None], lost: Callable[[frozenset[str], ErrorInfo], None]
    ) -> None:
        """Register the functions that receive the pipeline's messages and the loss of a worker.

        Args:
            deliver: Called with every message for the collector, in order within each request.
            lost: Called with the stages that a lost worker ran, and the error for the requests that still need them.
        """

    def trace(self, noted: Callable[[Notes], None]) -> None:
        """Register the function that receives the trace notes of workers and main process, if tracing is on."""

    def budget(self, claimed: Callable[[Claim, Callable[[], None]], None]) -> None:
        """Register the function that receives claims of stages for memory, each with a function that grants it.

        A stage waits until its claim is granted. A claim need not be granted if its request is aborted.
        """

    async def wait_for(self, stages: Collection[str] | None, seconds: float | None) -> None:
        """Wait until `stages` can work; None means all stages.

        Args:
            seconds: Longest time to wait; None waits for ever. If the stages are known to
                need longer, the error is raised at once.

        Raises:
            OmniError: 503 with the time to wait, if the stages cannot work in time; 503 if the service is stopping.
        """

    def submit(self, request_id: str, body: Any, stages: Collection[str] | None = None) -> None:
        """Send a request body to the entry stage.

        Args:
            stages: Stages that the request needs; None means all.

        Raises:
            OmniError: 503, with the time to wait, if one of the stages cannot work now.
        """

    def abort(self, request_id: str, stages: frozenset[str], forgotten: Callable[[], None]) -> None:
        """Order every worker that may hold data of a request to forget the request. Call it at most once for each
        request.

        Args:
            stages: Stages that the request needs; the workers of other stages are not told.
            forgotten: Called when neither a worker nor a connection between workers holds data of the request any more.
        """

    @property
    def problem(self) -> str | None:
        """The reason why the pipeline cannot serve all requests now; None if the pipeline can."""

    @property
    def workers(self) -> Mapping[str, WorkerReport]:
        """The state of each worker, by name."""

    @property
    def stats(self) -> Mapping[str, StageStats]:
        """The latest counters of each stage, by name."""

    @property
    def edges(self) -> Iterable[EdgeStats]:
        """The latest counters of each edge of the graph."""

    @property
    def restarts(self) -> Mapping[str, int]:
        """The number of restarts of each worker, by name."""

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids of the running workers, by name."""
