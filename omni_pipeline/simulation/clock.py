"""The virtual clock of a simulation."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """Runs events in the order of their times. Events of the same time run in the order in which they were added.

    Attributes:
        now: The time in seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Run `event` at the time `when`, or now if this time has passed."""
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), event))

    def run(self, stop: Callable[[], bool], until: float) -> None:
        """Run events until `stop` is true, until the time `until`, or until no event is left."""
        while self._events and not stop():
            if self._events[0][0] > until:
                self.now = until
                return
            self.now, _, event = heapq.heappop(self._events)
            event()
