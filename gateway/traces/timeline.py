"""The timeline of one request: what was done for it, where, and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from msgspec import Struct, field

# The track of the main process's own work; every other track is a stage.
GATEWAY = "gateway"

# A message is under way.
TRANSFER = "transfer"
# A stage has a part of what it needs for its next step, and waits for more.
GATHER = "gather"

# Spans kept of one request; beyond that limit, only sums.
MOST_SPANS = 20_000

_NOTHING: AbstractContextManager[None] = nullcontext()


class Span(Struct, gc=False):
    """A stretch of time, by `time.monotonic`.

    On the track of a stage, its name is ``transfer`` (a message is under way to it), ``receive`` (it takes in a
    message), ``gather`` (from the first to the latest of the messages that the next step uses), ``queue`` (from then to
    the step) or ``step`` (it works on a batch with the request in it).

    Attributes:
        source: The sender, for a transfer.
        batch: Number of requests in the batch, for a step.
    """

    track: str
    name: str
    begin: float
    end: float
    source: str = ""
    batch: int = 0


class Sum(Struct):
    """All spans of one track: their number and their seconds, by name.

    Attributes:
        begin, end: First and last time at which the track held the request; time in a transfer to it does not count.
    """

    begin: float
    end: float
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Timeline:
    """The timeline of a request that is not traced. It accepts everything and keeps nothing.

    Attributes:
        trace_id: 32 hexadecimal digits; None for a request that is not traced.
    """

    trace_id: str | None = None

    def span(self, name: str) -> AbstractContextManager[None]:
        """Record the time inside the block as a span of the gateway."""
        return _NOTHING

    def until_now(self, name: str) -> None:
        """Record the time since the request came as a span of the gateway."""

    def follow(self, answer_id: str) -> None:
        """Note the id of the request in the pipeline, before it is submitted."""

    def read(self) -> None:
        """Record that the reader has taken all that came from the pipeline."""

    def end(self, figures: dict[str, Any]) -> None:
        """End the timeline; `figures` say how the request went."""


class Traced(Timeline):
    """The timeline of a request that is traced.

    Args:
        headers: ``traceparent`` and ``tracestate``, as far as the client sent them.
        following: Called with this timeline when `answer_id` is known.
        ending: Called with this timeline when the request is over.

    Attributes:
        answer_id: The request's id in the pipeline, once it has one.
        began, ended: By `time.monotonic`; `ended` is infinite until the request is over.
        epoch: Add it to such a time to get seconds since 1970.
        spans: In the order in which they became known.
        sums: By track.
        left_out: Number of spans that were not kept.
        figures: Values that say how the request went.
    """

    def __init__(
        self,
        trace_id: str,
        headers: dict[str, str],
        *,
        following: Callable[[Traced], None],
        ending: Callable[[Traced], None],
    ) -> None:
        self.trace_id: str = trace_id
        self.headers = headers
        self.answer_id = ""
        self.began = time.monotonic()
        self.ended = float("inf")
        self.epoch = time.time() - self.began
        self.spans: list[Span] = []
        self.sums: dict[str, Sum] = {}
        self.left_out = 0
        self.figures: dict[str, Any] = {}
        self._following = following
        self._ending = ending
        self._unread: float | None = None  # since when something waits for the reader
        self._busy_until = 0.0  # end of the gateway's latest span

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self._busy_until = time.monotonic()
            self.add(Span(GATEWAY, name, begin, self._busy_until))

    def until_now(self, name: str) -> None:
        self.add(Span(GATEWAY, name, self.began, time.monotonic()))

    def follow(self, answer_id: str) -> None:
        self.answer_id = answer_id
        self._following(self)

    def came(self, when: float) -> None:
        """Record that something came from the pipeline and waits for the reader."""
        if self._unread is None:
            self._unread = when

    def read(self) -> None:
        if self._unread is not None:
            self.add(Span(GATEWAY, "wait for the reader", max(self._unread, self._busy_until), time.monotonic()))
            self._unread = None

    def end(self, figures: dict[str, Any]) -> None:
        self.ended = time.monotonic()
        self.figures = figures
        self._ending(self)

    def add(self, span: Span, *, keep: bool = True) -> None:
        """Add one span to the sums. Keep the span itself only if `keep` is set and there is room for it."""
        name, begin, end = span.name, span.begin, span.end
        seconds = end - begin
        if name == TRANSFER:
            begin = end
        total = self.sums.get(span.track)
        if total is None:
            total = self.sums[span.track] = Sum(begin, end)
        if begin < total.begin:
            total.begin = begin
        if end > total.end:
            total.end = end
        total.counts[name] = total.counts.get(name, 0) + 1
        total.seconds[name] = total.seconds.get(name, 0.0) + seconds
        if keep and len(self.spans) < MOST_SPANS:
            self.spans.append(span)
        else:
            self.left_out += 1
