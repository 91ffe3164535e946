"""Defines the counters of a process for its stages, and for the edges that end in the process. A counter only grows."""

from __future__ import annotations

from bisect import bisect_left

from msgspec import Struct, field

# Upper bounds of histogram buckets.
STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
EDGE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5)


class Distribution(Struct):
    """A histogram, which counts the values in each bucket.

    Attributes:
        bounds: The largest value of each bucket, except the last bucket. The last bucket has no upper bound.
        counts: Number of values in each bucket. The list has one more entry than `bounds`.
        total: Sum of all values.
    """

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    @classmethod
    def over(cls, bounds: tuple[float, ...]) -> Distribution:
        """An empty histogram with these bounds."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def add(self, figure: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, figure)] += 1
        self.total += figure

    def plus(self, other: Distribution) -> Distribution:
        """The histogram of the values of both histograms, which must have the same bounds."""
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return Distribution(self.bounds, counts, self.total + other.total)


class EdgeStats(Struct):
    """Counters of the messages that have arrived over one edge since the receiving process started.

    Attributes:
        messages: Number of messages.
        bytes: Number of bytes of the messages' frames; 0 for messages that are passed inside a process.
        seconds: Histogram of the time from sending a message until the receiver begins to handle it.
        replica: Number of the replica of `target` in which the edge ends.
    """

    source: str
    target: str
    messages: int = 0
    bytes: int = 0
    seconds: Distribution = field(default_factory=lambda: Distribution.over(EDGE_SECONDS))
    replica: int = 0


class Edges:
    """Counts messages on the edges that end in one process. `replica` is the number of the replica that the process
    runs.
    """

    def __init__(self, replica: int = 0) -> None:
        self._replica = replica
        self._edges: dict[tuple[str, str], EdgeStats] = {}

    def add(self, source: str, target: str, size: int, seconds: float) -> None:
        """Count a message of `size` bytes that took `seconds` to arrive."""
        edge = self._edges.get((source, target))
        if edge is None:
            edge = self._edges[source, target] = EdgeStats(source, target, replica=self._replica)
        edge.messages += 1
        edge.bytes += size
        edge.seconds.add(seconds)

    def all(self) -> list[EdgeStats]:
        """The counters of each edge that has been used."""
        return list(self._edges.values())
