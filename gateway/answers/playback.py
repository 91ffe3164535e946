"""A player that is simulated to see whether a listener would have heard gaps."""

from __future__ import annotations


class Player:
    """Starts to play with the first piece of sound and plays each as soon as the one before has ended.

    Attributes:
        seconds: Length of all sound so far.
        underruns: How often there was nothing left to play before the next piece came.
        silence: Seconds without sound in all, between the first piece and the latest.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.underruns = 0
        self.silence = 0.0
        self._lasts_until: float | None = None

    def feed(self, now: float, seconds: float) -> None:
        """A piece of so many `seconds` has come at the time `now`."""
        self.seconds += seconds
        until = now if self._lasts_until is None else self._lasts_until
        if now > until:
            self.underruns += 1
            self.silence += now - until
            until = now
        self._lasts_until = until + seconds
