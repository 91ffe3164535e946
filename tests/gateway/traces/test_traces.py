"""Tests that the notes of all processes are joined into one timeline, and that the timeline is complete at the right
time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.traces import traces as module
from gateway.traces.request_timeline import Timeline, Traced
from gateway.traces.traces import Traces
from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.wire.trace_notes import Notes, Stepped, Took

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FOREVER = float("inf")


class Kept:
    """A sink that keeps the timelines that it gets. A test can make the sink fail or stall."""

    def __init__(self) -> None:
        self.timelines: list[Traced] = []
        self.places: Mapping[str, str] = {}
        self.errors: list[Exception] = []
        self.going_on = threading.Event()
        self.going_on.set()
        self.closed = False

    def write(self, timeline: Traced, places: Mapping[str, str]) -> None:
        self.going_on.wait()
        if self.errors:
            raise self.errors.pop()
        self.timelines.append(timeline)
        self.places = places

    def close(self) -> None:
        self.closed = True


def notes(worker: str, until: float, took: list[Took] | None = None, stepped: list[Stepped] | None = None) -> Notes:
    return Notes(worker, until, took or [], stepped or [])


def begin(traces: Traces, answer_id: str = "a") -> Traced:
    timeline = traces.begin({})
    assert isinstance(timeline, Traced)
    timeline.follow(answer_id)
    return timeline


@pytest.fixture
def sink() -> Kept:
    return Kept()


@pytest.fixture
def traces(sink: Kept) -> Traces:
    return Traces([sink], lambda: ("w", "v"))


def test_without_a_sink_nothing_is_traced() -> None:
    assert type(Traces([], lambda: ()).begin({})) is Timeline


async def test_notes_become_spans_of_their_requests(traces: Traces, sink: Kept) -> None:
    timeline = begin(traces)
    other = begin(traces, "b")
    step = Stepped("thinker", 5.0, 6.0, ["a", "b", "unknown"], [1.0, 2.0, 3.0], [4.0, 2.0, 3.0])
    traces.noted(notes("w", 6.0, [Took("a", "mm_aggregate", "thinker", 0.5, 1.0, 1.5)], [step]))
    assert [(span.name, span.begin, span.end) for span in timeline.spans] == [
        ("transfer", 0.5, 1.0),
        ("receive", 1.0, 1.5),
        ("gather", 1.0, 4.0),
        ("queue", 4.0, 5.0),
        ("step", 5.0, 6.0),
    ]
    assert [(span.name, span.begin, span.batch) for span in other.spans] == [("queue", 2.0, 0), ("step", 5.0, 3)]


async def test_notes_about_parts_are_those_of_the_whole(traces: Traces, sink: Kept) -> None:
    timeline = begin(traces)
    timeline.follow_part("a-0")
    traces.noted(notes("w", 6.0, stepped=[Stepped("thinker", 5.0, 6.0, ["a-0"], [5.0], [5.0])]))
    timeline.end({})
    traces.noted(notes("v", FOREVER))
    traces.noted(notes("w", FOREVER, stepped=[Stepped("decode", 6.0, 7.0, ["a-0"], [6.0], [6.0])]))
    traces.noted(notes("w", FOREVER, stepped=[Stepped("decode", 8.0, 9.0, ["a-0"], [8.0], [8.0])]))
    await traces.close()
    assert sink.timelines == [timeline]
    assert [(span.track, span.begin) for span in timeline.spans] == [("thinker", 5.0), ("decode", 6.0)]


async def test_what_comes_for_the_reader_is_of_the_gateway(traces: Traces) -> None:
    timeline = begin(traces)
    traces.noted(notes("main", 2.0, [Took("a", "decode", COLLECTOR, 1.0, 2.0, 2.0)]))
    timeline.read()
    transfer, wait = timeline.spans
    assert (transfer.track, transfer.source, transfer.name) == ("gateway", "decode", "transfer")
    assert (wait.track, wait.begin) == ("gateway", 2.0)


async def test_timeline_is_complete_when_every_worker_has_told_what_came_before_its_end(
    traces: Traces, sink: Kept
) -> None:
    timeline = begin(traces)
    timeline.end({"outcome": "ok"})
    late = Stepped("thinker", 5.0, 6.0, ["a"], [5.0], [5.0])
    traces.noted(notes("v", FOREVER))
    traces.noted(notes("w", timeline.ended - 1.0))
    assert sink.timelines == []
    traces.noted(notes("w", FOREVER, stepped=[late]))
    await traces.close()
    assert sink.timelines == [timeline]
    assert [span.name for span in timeline.spans] == ["step"]
    assert sink.places == {"thinker": "w"}
    assert (traces.written, traces.dropped, sink.closed) == (1, 0, True)


async def test_worker_that_says_nothing_is_not_waited_for_long(
    traces: Traces, sink: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    begin(traces).end({})
    await traces.close()
    assert len(sink.timelines) == 1


async def test_in_a_hurry_nothing_is_waited_for(traces: Traces, sink: Kept) -> None:
    begin(traces).end({})
    await traces.close(hurry=True)
    assert len(sink.timelines) == 1


async def test_request_that_ends_after_the_traces_were_closed_is_dropped(traces: Traces, sink: Kept) -> None:
    timeline = begin(traces)
    await traces.close()
    timeline.end({})
    assert sink.timelines == []


async def test_request_that_was_refused_is_complete_at_once(traces: Traces, sink: Kept) -> None:
    timeline = traces.begin({})
    timeline.end({"outcome": "refused"})
    await traces.close()
    assert sink.timelines == [timeline]


async def test_nothing_is_kept_of_a_request_that_is_complete(traces: Traces) -> None:
    for number in range(20):
        timeline = begin(traces, f"r{number}")
        traces.noted(notes("w", 1.0, stepped=[Stepped("thinker", 5.0, 6.0, [f"r{number}"], [5.0], [5.0])]))
        timeline.end({})
    for worker in ("v", "w"):
        traces.noted(notes(worker, FOREVER))
    await traces.close()
    assert (traces._followed, traces._ended, traces._budget.kept) == ({}, {}, 0)


async def test_all_timelines_together_are_bounded(sink: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SPANS", 3)
    traces = Traces([sink], lambda: ("w", "v"))
    timelines = [begin(traces, name) for name in ("a", "b")]
    traces.noted(notes("w", 1.0, stepped=[Stepped("x", 1.0, 2.0, ["a", "b"], [1.0] * 2, [1.0] * 2)] * 4))
    assert sum(len(timeline.spans) for timeline in timelines) == 3
    assert sum(timeline.left_out for timeline in timelines) == 5
    for timeline in timelines:
        timeline.end({})
    for worker in ("v", "w"):
        traces.noted(notes(worker, FOREVER))
    await traces.close()
    assert traces.dropped_spans == 5


async def test_the_bound_counts_every_span_and_does_not_wear_off(sink: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's spans count too, even for requests that never reach the pipeline."""
    monkeypatch.setattr(module, "MOST_SPANS", 10)
    traces = Traces([sink, Kept()], lambda: ("w",))
    for number in range(50):
        timeline = traces.begin({})
        timeline.until_now("wait for admission")
        with timeline.span("read"):
            pass
        if number % 2:
            timeline.follow(f"r{number}")
            with timeline.span("submit"):
                pass
            traces.noted(notes("w", 1.0, [Took(f"r{number}", "decode", COLLECTOR, 1.0, 2.0, 2.0)]))
            timeline.read()
        timeline.end({})
        traces.noted(notes("w", FOREVER))
        while traces._budget.kept:
            assert 0 < traces._budget.kept <= 10
            await asyncio.sleep(0)
    sink.going_on.clear()
    for _ in range(20):
        timeline = traces.begin({})
        timeline.until_now("wait for admission")
        timeline.end({})
    assert traces._budget.kept == 10
    sink.going_on.set()
    await traces.close()
    assert (traces._budget.kept, traces.dropped_spans) == (0, 10)
    assert sum(len(timeline.spans) for timeline in sink.timelines) == 50 * 2 + 25 * 3 + 10


async def test_a_long_tracestate_is_left_out(traces: Traces) -> None:
    for length in (512, 513, 8000):
        timeline = traces.begin({"traceparent": PARENT, "tracestate": "a=".ljust(length, "b")})
        assert isinstance(timeline, Traced)
        assert ("tracestate" in timeline.headers) == (length == 512)


async def test_timelines_that_a_slow_sink_does_not_take_are_dropped_and_counted(
    traces: Traces, sink: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    sink.going_on.clear()
    for _ in range(5):
        traces.begin({}).end({})
    sink.going_on.set()
    await traces.close()
    assert (traces.written, traces.dropped) == (2, 3)


async def test_sink_that_fails_is_logged_and_the_next_one_tried(
    traces: Traces, sink: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    sink.errors = [OSError("disk full")]
    for _ in range(2):
        traces.begin({}).end({})
    await traces.close()
    assert (traces.written, traces.dropped) == (1, 1)
    assert "disk full" in caplog.text


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"traceparent": PARENT}, True),
        ({"traceparent": PARENT, "tracestate": "a=b"}, True),
        ({"tracestate": "a=b"}, False),
        ({"traceparent": PARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32)}, False),
        ({"traceparent": PARENT.upper()}, False),
        ({"traceparent": PARENT[:-1]}, False),
        ({"traceparent": f"{PARENT}\nx"}, False),
    ],
)
def test_trace_of_the_caller_is_joined_if_its_header_is_sound(
    traces: Traces, given: dict[str, Any], kept: bool
) -> None:
    timeline = traces.begin(given)
    assert isinstance(timeline, Traced)
    assert (timeline.trace_id == "0af7651916cd43dd8448eb211c80319c") == kept
    assert timeline.headers == (given if kept else {})
    assert len(timeline.trace_id) == 32
