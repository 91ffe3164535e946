"""A simulated player: would somebody who listens from the first piece on have heard the speech stop?

The server counts with it while it answers, and `sgl-omni bench` with what it has received.
"""

from __future__ import annotations

AUDIBLE_SECONDS = 0.1
"""A shorter silence passes for a pause of the speaker; a longer one is an underrun."""


class Player:
    """Starts to play with the first piece of sound and plays each as soon as the one before has ended.

    Attributes:
        seconds: Length of all sound so far.
        underruns: Lengths of the silences longer than `AUDIBLE_SECONDS` in which it waited for the next piece.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.underruns: list[float] = []
        self._lasts_until: float | None = None

    def feed(self, now: float, seconds: float) -> float:
        """A piece of so many `seconds` has come at the time `now`; seconds that the player was silent before it."""
        self.seconds += seconds
        until = now if self._lasts_until is None else self._lasts_until
        silence = max(now - until, 0.0)
        if silence > AUDIBLE_SECONDS:
            self.underruns.append(silence)
        self._lasts_until = until + silence + seconds
        return silence
