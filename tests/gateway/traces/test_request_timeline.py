"""Tests the spans and the total times in the timeline of one request."""

from __future__ import annotations

import pytest

from gateway.traces import request_timeline as module
from gateway.traces.perfetto_files import covered
from gateway.traces.request_timeline import GATEWAY, GATHER, Span, Timeline
from tests.gateway.traces.requests import traced


def test_untraced_request_keeps_nothing() -> None:
    timeline = Timeline()
    with timeline.span("x"):
        timeline.follow("a")
        timeline.read()
    timeline.end({})
    assert timeline.trace_id is None
    assert vars(timeline) == {}


def test_spans_of_a_track_are_added_up_by_name() -> None:
    timeline = traced()
    for span in (
        Span("thinker", "transfer", 1.0, 2.0, source="mm_aggregate"),
        Span("thinker", "queue", 2.0, 2.5),
        Span("thinker", "step", 2.5, 3.0),
        Span("thinker", "step", 4.0, 4.25),
    ):
        timeline.add(span)
    total = timeline.sums["thinker"]
    assert (total.begin, total.end) == (2.0, 4.25)  # the stage's time begins after the transfer
    assert total.counts == {"transfer": 1, "queue": 1, "step": 2}
    assert total.seconds == pytest.approx({"transfer": 1.0, "queue": 0.5, "step": 0.75})


def test_too_many_spans_are_added_up_but_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SPANS", 2)
    timeline = traced()
    for begin in range(6):
        timeline.add(Span("thinker", "step", begin, begin + 0.5))
    assert (len(timeline.spans), timeline.left_out) == (2, 4)
    assert timeline.sums["thinker"].counts == {"step": 6}


def test_answer_that_waits_for_its_reader_is_a_span_from_the_first_piece_on() -> None:
    timeline = traced()
    timeline.came(timeline.began + 1.0)
    timeline.came(timeline.began + 2.0)
    timeline.read()
    timeline.read()
    [span] = timeline.spans
    assert (span.track, span.begin) == (GATEWAY, timeline.began + 1.0)


def test_coverage_counts_each_moment_once_and_only_within_the_request() -> None:
    timeline = traced(began=10.0, ended=20.0)
    for begin, end in ((9.0, 12.0), (11.0, 13.0), (11.5, 12.5), (15.0, 16.0), (19.0, 25.0)):
        timeline.add(Span("thinker", "step", begin, end))
    # The time in which the request waits for other stages does not count.
    timeline.add(Span("decode", GATHER, 10.0, 20.0))
    assert covered(timeline) == pytest.approx(3.0 + 1.0 + 1.0)
