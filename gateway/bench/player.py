"""A simulated player: would somebody who listens from the first chunk on have heard the speech stop?"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.bench.timeline import AudioChunk

# A shorter silence passes for a pause of the speaker.
AUDIBLE_SECONDS = 0.1


def stalls(sounds: Iterable[AudioChunk]) -> list[float]:
    """Seconds of each silence in which the player waited for the next chunk, however short.

    The player starts when the first chunk arrives, plays without a break while it has sound, and after a silence goes
    on as soon as more arrives.

    >>> stalls([AudioChunk(at=1.0, seconds=0.5), AudioChunk(at=1.75, seconds=0.5)])
    [0.25]
    """
    silences: list[float] = []
    played_out: float | None = None
    for sound in sounds:
        if played_out is not None and sound.at > played_out:
            silences.append(sound.at - played_out)
            played_out = sound.at
        played_out = (sound.at if played_out is None else played_out) + sound.seconds
    return silences


def underruns(sounds: Iterable[AudioChunk]) -> list[float]:
    """Those silences that a listener would notice."""
    return [silence for silence in stalls(sounds) if silence > AUDIBLE_SECONDS]
