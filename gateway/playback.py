"""Simulates a player, to find the silences that a listener would have heard in the speech.

The player starts with the first piece of sound. The server gives the player each piece that the pipeline generates.
`sgl-omni bench` gives the player each piece that arrives.
"""

from __future__ import annotations

AUDIBLE_SECONDS = 0.1
"""A shorter silence sounds like a pause of the speaker; a longer silence is an underrun."""


class Player:
    """A player that plays each piece of sound on arrival or after the end of the previous piece, whichever is later.

    Attributes:
        seconds: Length of all sound so far.
        underruns: Length of each wait for the next piece that was longer than `AUDIBLE_SECONDS`.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.underruns: list[float] = []
        self._lasts_until: float | None = None

    def feed(self, now: float, seconds: float) -> float:
        """Add a piece of `seconds` that arrived at time `now`. Returns the seconds of silence before it."""
        self.seconds += seconds
        until = now if self._lasts_until is None else self._lasts_until
        silence = max(now - until, 0.0)
        if silence > AUDIBLE_SECONDS:
            self.underruns.append(silence)
        self._lasts_until = until + silence + seconds
        return silence
