"""Shows clients what the pipeline does: a stream of views of all stages, and the timelines of individual requests."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from aiohttp import web
from msgspec import Struct

from gateway.admission import Admission
from gateway.api.health_report import HealthReport
from gateway.api.pipeline_view import EdgeView, PipelineView, StageView
from gateway.http import sse
from gateway.http.middleware import CLIENT, json_response
from gateway.pipeline import Pipeline
from gateway.traces.timelines_for_clients import RecentTimelines
from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.errors import ErrorInfo, OmniError, bad_request
from omni_pipeline.supervision.worker_state import State, WorkerReport
from omni_pipeline.wire.messages import StageStats

EVERY_SECONDS = 0.5
# Rates are means over this time. Workers send their counters about every second.
_WINDOW_SECONDS = 3.0
# Largest number of streams at the same time.
MOST_STREAMS = 16
# If a client has not read an event for this time, the server closes its connection, so that another client can have a
# stream.
_PATIENCE_SECONDS = 10.0
# Maximum time for which a request for a timeline waits. The request waits until the timeline is complete.
_NOTES_SECONDS = 5.0

_GATEWAY = "gateway"

# The states of a worker, from best to worst.
_STATES: tuple[State, ...] = ("ready", "loading", "restarting", "unhealthy")


class _Sample(Struct, frozen=True):
    """The counters of all stages and edges at one time. A key contains the name of the stage, or the names of both
    stages of the edge, and the number of the replica.
    """

    when: float
    stages: Mapping[tuple[str, int], tuple[int, float, float, int]]
    edges: Mapping[tuple[str, str, int], tuple[int, int]]


class PipelineWatch:
    """Serves `GET /v1/pipeline` and `GET /v1/pipeline/timelines/{answer}`.

    Args:
        report: Makes the report of `GET /health`.
        timelines: The timelines that clients have asked for.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        admission: Admission,
        report: Callable[[], HealthReport],
        timelines: RecentTimelines,
    ) -> None:
        self._pipeline = pipeline
        self._admission = admission
        self._report = report
        self._timelines = timelines
        self._streams = 0

    async def show_pipeline(self, request: web.Request) -> web.StreamResponse:
        """Send a view of the pipeline every half second, until the client leaves or the server stops.

        Raises:
            OmniError: 429 if there are too many of these streams already.
        """
        if self._streams >= MOST_STREAMS:
            raise _too_many()
        self._streams += 1
        try:
            return await self._stream(request)
        finally:
            self._streams -= 1

    async def show_timeline(self, request: web.Request) -> web.Response:
        """The timeline of an answer that was sent to this client. Raises OmniError (404) if the server has no timeline
        of this answer.
        """
        answer_id = request.match_info["answer"]
        found = await self._timelines.find(answer_id, request[CLIENT], _NOTES_SECONDS)
        if found is None:
            raise bad_request(
                "There is no timeline of this answer. The server keeps only the latest timelines of "
                "requests with the header 'X-Omni-Timeline: keep'.",
                param="answer",
                code="timeline_not_found",
                status=404,
            )
        return json_response(found)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=sse.HEADERS)
        await response.prepare(request)
        samples = deque([self._sample()])
        try:
            while True:
                report = self._report()
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await response.write(sse.event(self._view(report, samples[0], samples[-1])))
                if report.status == "stopping":
                    break
                await asyncio.sleep(EVERY_SECONDS)
                samples.append(self._sample())
                while samples[-1].when - samples[0].when > _WINDOW_SECONDS:
                    samples.popleft()
            await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        return response

    def _sample(self) -> _Sample:
        return _Sample(
            time.monotonic(),
            {(name, replica): _counters(stats) for name, replica, stats in self._pipeline.replica_stats},
            {(edge.source, edge.target, edge.replica): (edge.messages, edge.bytes) for edge in self._pipeline.edges},
        )

    def _view(self, report: HealthReport, old: _Sample, new: _Sample) -> PipelineView:
        seconds = max(new.when - old.when, EVERY_SECONDS)
        return PipelineView(
            status=report.status,
            problem=report.problem,
            requests=self._admission.requests,
            waiting=self._admission.waiting,
            voices=self._admission.voice_load.voices,
            stages=list(self._stages(report.workers, old, new, seconds)),
            edges=list(_edges(old, new, seconds)),
        )

    def _stages(
        self, workers: Mapping[str, WorkerReport], old: _Sample, new: _Sample, seconds: float
    ) -> Iterator[StageView]:
        stats = self._pipeline.stats
        running: dict[str, list[str]] = {}
        for name, worker in workers.items():
            for stage in worker.stages:
                running.setdefault(stage, []).append(name)
        for stage, names in running.items():
            now = stats.get(stage, StageStats())
            grown = [_grown(old.stages.get(key), new.stages[key]) for key in new.stages if key[0] == stage]
            steps, busy, total, batches = map(sum, zip(*grown, strict=True)) if grown else (0.0, 0.0, 0.0, 0.0)
            worst = max(names, key=lambda name: _STATES.index(workers[name].state))
            yield StageView(
                name=stage,
                worker=worst,
                state=workers[worst].state,
                restarts=sum(workers[name].restarts for name in names),
                last_end=workers[worst].last_end or workers[worst].previous_end,
                live=now.live_requests,
                queued=int(now.extra.get("queued_requests", 0)),
                batch=round(total / batches, 2) if batches else None,
                steps=round(steps / seconds, 1),
                busy=round(min(1.0, busy / seconds / len(names)), 3),
                kv_used=_whole(now.extra.get("kv_tokens_used")),
                kv_limit=_whole(now.extra.get("kv_tokens_limit")),
                replicas=len(names),
                replicas_ready=sum(workers[name].state == "ready" for name in names),
            )


def _counters(stats: StageStats) -> tuple[int, float, float, int]:
    """Four counters: the number of steps, the busy seconds, the number of requests in all batches, and the number of
    batches.
    """
    return stats.steps, stats.busy_seconds, stats.batch_sizes.total, sum(stats.batch_sizes.counts)


def _grown(
    old: tuple[int, float, float, int] | None, new: tuple[int, float, float, int]
) -> tuple[float, float, float, float]:
    """The increase of the counters. If the worker's process is new, its counters began at zero."""
    if old is None or new[0] < old[0]:
        old = (0, 0.0, 0.0, 0)
    return new[0] - old[0], new[1] - old[1], new[2] - old[2], new[3] - old[3]


def _edges(old: _Sample, new: _Sample, seconds: float) -> Iterable[EdgeView]:
    grown: dict[tuple[str, str], tuple[int, int]] = {}
    for key, (messages, size) in new.edges.items():
        before = old.edges.get(key, (0, 0))
        if messages < before[0]:
            before = (0, 0)
        others = grown.get(key[:2], (0, 0))
        grown[key[:2]] = others[0] + messages - before[0], others[1] + size - before[1]
    for (source, target), (messages, size) in grown.items():
        shown = _GATEWAY if target == COLLECTOR else target
        yield EdgeView(source, shown, round(messages / seconds, 1), round(size / seconds, 1))


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _too_many() -> OmniError:
    return OmniError(
        ErrorInfo(
            status=429,
            message=f"{MOST_STREAMS} clients already watch the pipeline; try again when one of them has disconnected.",
            type="rate_limit_error",
            code="too_many_requests",
            retry_after=5,
        )
    )
