"""Simulates a player of streamed speech, to find the silences that a listener would hear.

The player starts with the first piece of sound. In the server, a piece arrives at the player when the pipeline has
generated it. In `sgl-omni bench`, a piece arrives when the client receives it.
"""

from __future__ import annotations

AUDIBLE_SECONDS = 0.1
"""A silence of more than this number of seconds counts as an underrun. A shorter silence sounds like a pause of the
speaker.
"""


class Player:
    """A player that plays each piece of sound when it arrives. If the previous piece is still playing, the player plays
    the new piece directly after the previous piece.

    Attributes:
        seconds: Length of all sound so far.
        underruns: Lengths of the waits for the next piece. Waits of up to `AUDIBLE_SECONDS` are left out.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.underruns: list[float] = []
        self._lasts_until: float | None = None

    def feed(self, now: float, seconds: float) -> float:
        """Add a piece of sound that arrived at the time `now`. `seconds` is the length of the piece. Returns the length
        of the silence before this piece, in seconds.
        """
        self.seconds += seconds
        until = now if self._lasts_until is None else self._lasts_until
        silence = max(now - until, 0.0)
        if silence > AUDIBLE_SECONDS:
            self.underruns.append(silence)
        self._lasts_until = until + silence + seconds
        return silence
