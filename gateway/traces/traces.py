"""Joins the notes that all processes make about a request into one timeline, and passes complete timelines to sinks."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from gateway.traces.request_timeline import GATEWAY, GATHER, TRANSFER, Span, SpanBudget, Timeline, Traced
from gateway.traces.timelines_for_clients import RecentTimelines
from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.wire.trace_notes import Notes, Stepped, Took

log = logging.getLogger(__name__)

# Seconds for which a timeline waits for late notes. Workers send their notes at least every second.
PATIENCE_SECONDS = 3.0

# Largest number of complete timelines that wait to be written. Further timelines are dropped.
MOST_WAITING = 64

# Maximum number of spans, over all requests, in timelines that have not been written yet. A span takes about 100 bytes.
MOST_SPANS = 1_000_000

# The time in which a stage reads a message, or waits for a step, becomes a span only if it is longer than this number
# of seconds. Without this limit, there would be a span for each tiny gap between two steps of a stage.
_BRIEF = 50e-6

_TRACE_PARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

# Largest length of a `tracestate` header, as OpenTelemetry's specification recommends.
_LONGEST_STATE = 512

# With this header, a client asks to keep the timeline of its request in memory.
ASKING = "X-Omni-Timeline", "keep"

_UNTRACED = Timeline()


class Sink(Protocol):
    """A destination of complete timelines."""

    def write(self, timeline: Traced, places: Mapping[str, str]) -> None:
        """Write one timeline. Called in a separate thread, one call at a time. If the call raises an error, the
        timeline is dropped.

        Args:
            places: The process of each stage.
        """

    def close(self) -> None:
        """Close the sink after the last timeline. Called on the event loop. If a call of `write` still runs in its
        thread, `close` must make this call of `write` end.
        """


class _Lane:
    """A sink with the thread that writes to it."""

    def __init__(self, sink: Sink) -> None:
        self.written = 0
        self.dropped = 0
        self._sink = sink
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="traces")
        self._writing: set[asyncio.Future[None]] = set()

    def put(self, timeline: Traced, places: Mapping[str, str]) -> asyncio.Future[None] | None:
        """Write a timeline in the sink's thread. Returns None if too many timelines wait already."""
        if self._closed or len(self._writing) >= MOST_WAITING:
            self.dropped += 1
            return None
        writing = asyncio.get_running_loop().run_in_executor(self._thread, self._sink.write, timeline, places)
        self._writing.add(writing)
        writing.add_done_callback(self._wrote)
        return writing

    async def close(self) -> None:
        """Accept no more timelines, and wait a limited time until the waiting timelines are written."""
        self._closed = True
        if self._writing:
            await asyncio.wait(self._writing, timeout=PATIENCE_SECONDS)
        self._sink.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _wrote(self, writing: asyncio.Future[None]) -> None:
        self._writing.discard(writing)
        if writing.cancelled():
            return
        error = writing.exception()
        if error is None:
            self.written += 1
        else:
            self.dropped += 1
            log.error("a trace could not be written: %s", error)


class Traces:
    """Builds the timelines of all traced requests. Used on the event loop only.

    Args:
        sinks: Destinations of all timelines. Without sinks, a request is traced only if the client asks for the
            timeline of this request.
        workers: Returns the names of the workers that run.

    Attributes:
        recent: The latest timelines that clients have asked for.
        dropped_spans: Spans that were left out of timelines.
    """

    def __init__(self, sinks: Sequence[Sink], workers: Callable[[], Collection[str]]) -> None:
        self.dropped_spans = 0
        self.recent = RecentTimelines()
        self._recent_lane = _Lane(self.recent)
        self._lanes = [_Lane(sink) for sink in sinks]
        self._workers = workers
        self._followed: dict[str, Traced] = {}  # timelines by request id, until their last notes have arrived
        self._ended: dict[str, asyncio.TimerHandle] = {}  # timers of timelines whose requests have ended
        self._budget = SpanBudget(MOST_SPANS)
        self._told: dict[str, float] = {}  # time up to which each worker has sent all its notes
        self._places: dict[str, str] = {}  # the worker that runs each stage
        self._emptied = asyncio.Event()

    @property
    def written(self) -> int:
        """Number of timelines that sinks have written."""
        return sum(lane.written for lane in self._lanes)

    @property
    def dropped(self) -> int:
        """Number of timelines that were not written because too many waited or writing failed."""
        return sum(lane.dropped for lane in self._lanes)

    def begin(self, headers: Mapping[str, str], client: str = "") -> Timeline:
        """The timeline of a request that has just arrived from `client` with these HTTP headers."""
        name, value = ASKING
        asked = headers.get(name) == value
        if not self._lanes and not asked:
            return _UNTRACED
        given = _TRACE_PARENT.fullmatch(headers.get("traceparent", ""))
        kept = {name: headers[name] for name in ("traceparent", "tracestate") if given and name in headers}
        if len(kept.get("tracestate", "")) > _LONGEST_STATE:
            del kept["tracestate"]
        trace_id = given[1] if given else secrets.token_hex(16)
        return Traced(
            trace_id, kept, client=client, asked=asked, budget=self._budget, following=self._follow, ending=self._end
        )

    def noted(self, notes: Notes) -> None:
        """Add the notes of one process."""
        for took in notes.took:
            timeline = self._followed.get(took.request_id)
            if timeline is not None:
                self._add_took(timeline, took)
        for stepped in notes.stepped:
            self._places[stepped.stage] = notes.worker
            self._add_step(stepped, notes.worker)
        self._told[notes.worker] = notes.until
        for answer_id in [answer_id for answer_id in self._ended if self._is_complete(answer_id)]:
            self._complete(answer_id)

    async def close(self, *, hurry: bool = False) -> None:
        """Wait for the last notes, and for the sinks to write. If `hurry` is set, do not wait for notes. After this
        call, nothing is traced.
        """
        if hurry:
            for answer_id in list(self._ended):
                self._complete(answer_id)
        while self._ended:
            self._emptied.clear()
            await self._emptied.wait()
        await asyncio.gather(*(lane.close() for lane in (*self._lanes, self._recent_lane)))

    def _follow(self, timeline: Traced, request_id: str) -> None:
        self._followed[request_id] = timeline
        if timeline.asked and request_id == timeline.answer_id:
            self.recent.expect(request_id, timeline.client)

    def _end(self, timeline: Traced) -> None:
        if timeline.answer_id not in self._followed:  # the request did not reach the pipeline
            self._write(timeline)
            return
        loop = asyncio.get_running_loop()
        self._ended[timeline.answer_id] = loop.call_later(PATIENCE_SECONDS, self._complete, timeline.answer_id)
        if self._is_complete(timeline.answer_id):  # no worker is running
            self._complete(timeline.answer_id)

    def _is_complete(self, answer_id: str) -> bool:
        ended = self._followed[answer_id].ended
        return all(self._told.get(worker, 0.0) >= ended for worker in self._workers())

    def _complete(self, answer_id: str) -> None:
        self._ended.pop(answer_id).cancel()
        timeline = self._followed.pop(answer_id)
        for part_id in timeline.part_ids:
            del self._followed[part_id]
        self._write(timeline)
        if not self._ended:
            self._emptied.set()

    def _add_took(self, timeline: Traced, took: Took) -> None:
        track = took.target
        if took.target == COLLECTOR:
            track = GATEWAY
            timeline.came(took.taken)
        timeline.add(Span(track, TRANSFER, took.sent, took.taken, source=took.source))
        if took.done - took.taken > _BRIEF:
            timeline.add(Span(track, "receive", took.taken, took.done))

    def _add_step(self, stepped: Stepped, worker: str) -> None:
        batch = len(stepped.requests) + stepped.others
        for request_id, first, latest in zip(stepped.requests, stepped.first, stepped.latest, strict=True):
            timeline = self._followed.get(request_id)
            if timeline is None:
                continue
            timeline.places[stepped.stage] = worker
            if latest - first > _BRIEF:
                timeline.add(Span(stepped.stage, GATHER, first, latest))
            if stepped.begin - latest > _BRIEF:
                timeline.add(Span(stepped.stage, "queue", latest, stepped.begin))
            timeline.add(Span(stepped.stage, "step", stepped.begin, stepped.end, batch=batch))

    def _write(self, timeline: Traced) -> None:
        """Pass a complete timeline to all sinks. The spans count towards the budget until the last sink has finished
        with the timeline.
        """
        self.dropped_spans += timeline.left_out
        lanes = [*self._lanes, self._recent_lane] if timeline.asked else self._lanes
        begun = [lane.put(timeline, self._places | timeline.places) for lane in lanes]
        waiting = {writing for writing in begun if writing is not None}

        def wrote(writing: asyncio.Future[None]) -> None:
            waiting.discard(writing)
            if not waiting:
                self._budget.give_back(len(timeline.spans))

        for writing in list(waiting):
            writing.add_done_callback(wrote)
        if not waiting:
            self._budget.give_back(len(timeline.spans))
