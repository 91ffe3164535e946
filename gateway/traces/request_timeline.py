"""Records the timeline of one request: which process or stage worked on it at which time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from msgspec import Struct, field

# The name of the track with the main process's own work. A *track* is one line of a timeline. Each other track shows
# the work of a stage.
GATEWAY = "gateway"

# The name of a span during which a message is being sent to a stage or to the gateway.
TRANSFER = "transfer"
# The name of a span in which a stage has received some messages for its next step, and waits for the other messages.
GATHER = "gather"

# Maximum number of spans that the timeline of one request keeps. Further spans are not kept, but they still count in
# the sums of each track (see `Sum`).
MOST_SPANS = 20_000

_NOTHING: AbstractContextManager[None] = nullcontext()


class Span(Struct, gc=False):
    """A period of time, by `time.monotonic`.

    On the track of a stage, the name of a span is one of these:

    - ``transfer``: a message is on its way to the stage.
    - ``receive``: the stage reads a message.
    - ``gather``: the time from the first to the latest of the messages that the next step uses.
    - ``queue``: the time from the latest of these messages to the step.
    - ``step``: the stage works on a batch that contains the request.

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
    """The sums over all spans of one track. For each name of a span, `counts` contains the number of spans with this
    name, and `seconds` contains the sum of their durations in seconds.

    Attributes:
        begin, end: First and last time at which the stage, or the gateway, held the request. The time of a transfer to
            the stage or the gateway does not count.
    """

    begin: float
    end: float
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class SpanBudget:
    """Limits the number of spans that all timelines together keep.

    Attributes:
        kept: Number of spans that are kept.
        most: Largest number of spans to keep.
    """

    def __init__(self, most: int) -> None:
        self.kept = 0
        self.most = most

    def take(self) -> bool:
        """Count another span and return True. If the largest number of spans is kept already, return False."""
        if self.kept >= self.most:
            return False
        self.kept += 1
        return True

    def give_back(self, spans: int) -> None:
        """Reduce the count by `spans`. No timeline keeps these spans any more."""
        self.kept -= spans


class Timeline:
    """The timeline of a request that is not traced. All methods accept calls and record nothing.

    Attributes:
        trace_id: 32 hexadecimal digits; None for a request that is not traced.
        asked: Whether the client has asked the server to keep the timeline, so that the client can fetch it.
    """

    trace_id: str | None = None
    asked = False

    def span(self, name: str) -> AbstractContextManager[None]:
        """Record the time inside the block as a span of the gateway."""
        return _NOTHING

    def until_now(self, name: str) -> None:
        """Record the time since the arrival of the request as a span of the gateway."""

    def follow(self, answer_id: str) -> None:
        """Record the id of the request in the pipeline. Called before the request is submitted."""

    def follow_part(self, part_id: str) -> None:
        """Record the id of a part of this request. In the pipeline, a part is a separate request with its own id.
        Called after `follow`.
        """

    def read(self) -> None:
        """Record that the reader has taken all messages that have arrived from the pipeline."""

    def end(self, figures: dict[str, Any]) -> None:
        """End the timeline; `figures` describe the outcome of the request."""


class Traced(Timeline):
    """The timeline of a request that is traced.

    Args:
        headers: ``traceparent`` and ``tracestate``, if the client sent them.
        client: The client that sent the request.
        asked: Whether the client has asked the server to keep the timeline, so that the client can fetch it.
        budget: Counts the spans that the timeline keeps.
        following: Called when the pipeline's id of the request, or of a part of the request, is known. The arguments
            are this timeline and the id.
        ending: Called with this timeline when the request has ended.

    Attributes:
        answer_id: The request's id in the pipeline, once the request has an id.
        part_ids: Ids of the requests in the pipeline that are parts of this request.
        began, ended: Times by `time.monotonic`; `ended` is infinite until the request has ended.
        epoch: Seconds to add to a time by `time.monotonic` to get the time since 1970.
        spans: Spans in the order in which they were added.
        sums: The sums of the spans of each track. The keys are the names of the tracks.
        left_out: Number of spans that were not kept.
        figures: Values that describe the outcome of the request.
        places: The worker of each stage that worked on the request.
    """

    def __init__(
        self,
        trace_id: str,
        headers: dict[str, str],
        *,
        client: str = "",
        asked: bool = False,
        budget: SpanBudget,
        following: Callable[[Traced, str], None],
        ending: Callable[[Traced], None],
    ) -> None:
        self.trace_id: str = trace_id
        self.headers = headers
        self.client = client
        self.asked = asked
        self.answer_id = ""
        self.part_ids: list[str] = []
        self.began = time.monotonic()
        self.ended = float("inf")
        self.epoch = time.time() - self.began
        self.spans: list[Span] = []
        self.sums: dict[str, Sum] = {}
        self.left_out = 0
        self.figures: dict[str, Any] = {}
        self.places: dict[str, str] = {}
        self._budget = budget
        self._following = following
        self._ending = ending
        self._unread: float | None = None  # arrival time of the oldest message that waits for the reader
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
        self._following(self, answer_id)

    def follow_part(self, part_id: str) -> None:
        self.part_ids.append(part_id)
        self._following(self, part_id)

    def came(self, when: float) -> None:
        """Record that a message arrived from the pipeline at `when` and waits for the reader."""
        if self._unread is None:
            self._unread = when

    def read(self) -> None:
        if self._unread is not None:
            self.add(Span(GATEWAY, "wait for the handler", max(self._unread, self._busy_until), time.monotonic()))
            self._unread = None

    def end(self, figures: dict[str, Any]) -> None:
        self.ended = time.monotonic()
        self.figures = figures
        self._ending(self)

    def add(self, span: Span) -> None:
        """Add one span to the sums. Keep the span itself only if there is room for it."""
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
        if len(self.spans) < MOST_SPANS and self._budget.take():
            self.spans.append(span)
        else:
            self.left_out += 1
