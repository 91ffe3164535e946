"""Makes timelines with fixed values for tests."""

from __future__ import annotations

from typing import Any

from gateway.traces.request_timeline import Span, SpanBudget, Traced

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
FIGURES = {"request_id": "req-1", "model": "tiny", "answer_id": "chatcmpl-1", "outcome": "ok", "completion_tokens": 3}


def traced(began: float = 100.0, ended: float = 101.0, headers: dict[str, str] | None = None, **figures: Any) -> Traced:
    """The timeline, without spans, of a request that has ended."""
    timeline = Traced(
        TRACE_ID, headers or {}, budget=SpanBudget(10**6), following=lambda *_: None, ending=lambda _: None
    )
    timeline.answer_id = "chatcmpl-1"
    timeline.began, timeline.ended, timeline.epoch = began, ended, 1_700_000_000.0 - began
    timeline.figures = FIGURES | figures
    return timeline


def spoken(**figures: Any) -> Traced:
    """The timeline of a request that has been through two stages."""
    timeline = traced(**figures)
    for span in (
        Span("gateway", "read", 100.0, 100.1),
        Span("thinker", "transfer", 100.1, 100.2, source="gateway"),
        Span("thinker", "queue", 100.2, 100.3),
        Span("thinker", "step", 100.3, 100.6, batch=4),
        Span("decode", "transfer", 100.6, 100.7, source="thinker"),
        Span("decode", "gather", 100.7, 100.75),
        Span("decode", "step", 100.8, 100.9, batch=1),
    ):
        timeline.add(span)
    return timeline
