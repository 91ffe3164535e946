"""Reports whether the server can answer now. If the server cannot answer, reports the reason."""

from __future__ import annotations

from gateway.api.health_report import HealthReport, StageHealth, Status
from gateway.pipeline import Pipeline
from omni_pipeline.supervision.worker_state import WorkerReport


class Health:
    """The state of the server.

    Attributes:
        stopping: Whether the server is stopping: it finishes the requests in progress and refuses new requests.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.stopping = False
        self._pipeline = pipeline

    def report(self) -> HealthReport:
        """The current state."""
        workers = dict(self._pipeline.workers)
        status, problem = self._status(workers)
        stages = {
            name: StageHealth(live_requests=stats.live_requests, received=stats.received)
            for name, stats in self._pipeline.stats.items()
        }
        return HealthReport(status=status, problem=problem, workers=workers, stages=stages)

    def _status(self, workers: dict[str, WorkerReport]) -> tuple[Status, str | None]:
        problem = self._pipeline.problem
        if self.stopping:
            return "stopping", "the server is shutting down"
        if problem is not None:
            if any(worker.state == "unhealthy" for worker in workers.values()):
                return "unhealthy", problem
            loading = any(worker.state == "loading" for worker in workers.values())
            return "starting" if loading else "unavailable", problem
        if not self._pipeline.warm:
            return "starting", "the warm-up request has not been answered yet"
        degraded = self._pipeline.degraded
        return ("ok", None) if degraded is None else ("degraded", degraded)
