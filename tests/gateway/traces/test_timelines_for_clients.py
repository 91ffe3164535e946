"""Clients can fetch the timelines of their own answers, but not those of other clients."""

from __future__ import annotations

import asyncio

import pytest

from gateway.traces.request_timeline import GATEWAY, Span, SpanBudget, Traced
from gateway.traces.timelines_for_clients import MOST, MOST_OF_TRACK, RecentTimelines, request_timeline


def traced(*spans: Span, answer_id: str = "a") -> Traced:
    """The ended timeline of a request that arrived at time 0."""
    timeline = Traced(
        "0" * 32, {}, budget=SpanBudget(10_000), following=lambda *_: None, ending=lambda _: None, asked=True
    )
    timeline.answer_id = answer_id
    timeline.began, timeline.ended = 0.0, 10.0
    for span in spans:
        timeline.add(span)
    return timeline


async def test_a_client_waits_for_its_timeline_and_others_get_none() -> None:
    recent = RecentTimelines()
    recent.expect("a", "one")
    waiting = asyncio.create_task(recent.find("a", "one", 60))
    await asyncio.to_thread(recent.write, traced(Span("thinker", "step", 1.0, 2.0, batch=3)), {"thinker": "gpu"})
    found = await waiting
    assert found is not None
    [track] = found.tracks
    assert (found.id, found.seconds, track.stage, track.worker) == ("a", 10.0, "thinker", "gpu")
    assert [(span.name, span.begin, span.end, span.batch) for span in track.spans] == [("step", 1.0, 2.0, 3)]
    assert await recent.find("a", "another", 60) is None
    assert await recent.find("b", "one", 60) is None


async def test_a_timeline_that_never_comes_is_not_awaited_for_ever() -> None:
    recent = RecentTimelines()
    recent.expect("a", "one")
    assert await recent.find("a", "one", 0.01) is None


async def test_only_the_latest_are_kept() -> None:
    recent = RecentTimelines()
    for number in range(MOST + 1):
        recent.expect(str(number), "one")
        recent.write(traced(answer_id=str(number)), {})
    assert await recent.find("0", "one", 60) is None
    assert await recent.find("1", "one", 60) is not None


@pytest.mark.parametrize("gap", [0.0001, 0.004])
def test_a_long_answer_fits(gap: float) -> None:
    spans = [Span("talker_ar", "step", at * 0.005, at * 0.005 + 0.005 - gap) for at in range(2000)]
    [track] = request_timeline(traced(*spans), {}).tracks
    assert len(track.spans) <= MOST_OF_TRACK
    assert sum(span.count for span in track.spans) == track.counts["step"] == 2000
    assert (track.spans[0].begin, track.spans[-1].end) == (0.0, pytest.approx(10.0 - gap))


def test_the_gateway_comes_first_and_then_the_stages_as_they_began() -> None:
    spans = (Span("b", "step", 3.0, 4.0), Span("a", "step", 1.0, 2.0), Span(GATEWAY, "read", 5.0, 6.0))
    assert [track.stage for track in request_timeline(traced(*spans), {}).tracks] == [GATEWAY, "a", "b"]
