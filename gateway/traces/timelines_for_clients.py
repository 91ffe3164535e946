"""Keeps the latest timelines that clients have asked for, in memory. Each client can fetch its own timelines."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from gateway.traces.request_timeline import GATEWAY, Span, Sum, Traced

# Number of timelines that are kept. If there are more, the oldest timelines are dropped.
MOST = 64
# Maximum number of spans of one track. To keep this limit, spans that follow each other closely are joined.
MOST_OF_TRACK = 200


class TrackSpan(Struct, array_like=True):
    """A period in which the stage or process of a track did one kind of work, once or several times. Times are in
    seconds since the arrival of the request.

    Attributes:
        name: The kind of work; see `request_timeline.Span`.
        begin, end: First and last time.
        count: Number of spans that are joined.
        batch: Largest number of requests in one batch, for steps.
    """

    name: str
    begin: float
    end: float
    count: int
    batch: int


class Track(Struct):
    """The work of one stage, or of the gateway, for a request.

    Attributes:
        stage: Name of the stage, or ``gateway``.
        worker: Name of the process that ran the stage.
        begin, end: First and last time at which the stage held the request, in seconds since the arrival of the
            request.
        counts, seconds: For each name of a span, the number of spans with this name, and the sum of their durations in
            seconds.
        spans: The spans. Spans that follow each other closely are joined.
    """

    stage: str
    worker: str
    begin: float
    end: float
    counts: dict[str, int]
    seconds: dict[str, float]
    spans: list[TrackSpan]


class RequestTimeline(Struct):
    """The body of `GET /v1/pipeline/timelines/{answer}`.

    Attributes:
        id: The id of the answer.
        seconds: Time from the request's arrival to the end of its answer.
        figures: The measured values, as in the log.
        tracks: The track of the gateway, and then the tracks of the stages in the order in which the stages began.
    """

    id: str
    seconds: float
    figures: dict[str, Any]
    tracks: list[Track]


class RecentTimelines:
    """The latest timelines; see `traces.Sink`. All methods except `write` are called on the event loop."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, asyncio.Future[RequestTimeline]]] = OrderedDict()

    def expect(self, answer_id: str, client: str) -> None:
        """Expect the timeline of an answer that is sent to `client`."""
        self._kept[answer_id] = client, asyncio.get_running_loop().create_future()
        while len(self._kept) > MOST:
            _, (_, forgotten) = self._kept.popitem(last=False)
            forgotten.cancel()

    def write(self, timeline: Traced, places: Mapping[str, str]) -> None:
        """Keep a timeline that is expected. Called in a thread."""
        _, coming = self._kept.get(timeline.answer_id, ("", None))
        if coming is not None:
            coming.get_loop().call_soon_threadsafe(_arrive, coming, request_timeline(timeline, places))

    def close(self) -> None:
        """Do nothing: this sink holds no open files or connections."""

    async def find(self, answer_id: str, client: str, seconds: float) -> RequestTimeline | None:
        """The timeline of an answer that was sent to `client`. Waits for at most `seconds`, because the workers send
        their spans up to a second after the end of the answer. None if no answer to `client` has this id, or if the
        timeline is not complete in time.
        """
        owner, coming = self._kept.get(answer_id, ("", None))
        if coming is None or owner != client:
            return None
        await asyncio.wait([coming], timeout=seconds)
        return coming.result() if coming.done() and not coming.cancelled() else None


def _arrive(coming: asyncio.Future[RequestTimeline], found: RequestTimeline) -> None:
    if not coming.done():
        coming.set_result(found)


def request_timeline(timeline: Traced, places: Mapping[str, str]) -> RequestTimeline:
    """A timeline in the form that clients get.

    Args:
        places: Name of the process that runs each stage.
    """
    spans: dict[str, list[Span]] = defaultdict(list)
    for span in timeline.spans:
        spans[span.track].append(span)
    total = timeline.ended - timeline.began
    tracks = sorted(timeline.sums.items(), key=lambda item: (item[0] != GATEWAY, item[1].begin))
    return RequestTimeline(
        timeline.answer_id,
        total,
        timeline.figures,
        [
            _track(name, places.get(name, "main"), total_of, spans[name], timeline.began, total)
            for name, total_of in tracks
        ],
    )


def _track(name: str, worker: str, total: Sum, spans: list[Span], began: float, seconds: float) -> Track:
    return Track(
        name,
        worker,
        _round(total.begin - began),
        _round(total.end - began),
        total.counts,
        {each: _round(value) for each, value in total.seconds.items()},
        _joined(spans, began, max(seconds, 0.001) / MOST_OF_TRACK),
    )


def _joined(spans: list[Span], began: float, near: float) -> list[TrackSpan]:
    """The spans in order of their beginning. A span is joined with an earlier span of the same name if the time between
    them is at most `near`, in seconds. `near` is doubled until the result is short enough.
    """
    latest: dict[str, TrackSpan] = {}
    made: list[TrackSpan] = []
    for span in sorted(spans, key=lambda each: each.begin):
        begin, end = _round(span.begin - began), _round(span.end - began)
        before = latest.get(span.name)
        if before is not None and begin - before.end <= near:
            before.end = max(before.end, end)
            before.count += 1
            before.batch = max(before.batch, span.batch)
        else:
            latest[span.name] = TrackSpan(span.name, begin, end, 1, span.batch)
            made.append(latest[span.name])
    return made if len(made) <= MOST_OF_TRACK else _joined(spans, began, 2 * near)


def _round(seconds: float) -> float:
    return round(seconds, 6)
