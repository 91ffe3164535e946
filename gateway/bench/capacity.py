"""Finds by bisection how many spoken streams a server can generate at once, so that all streams play without a gap.

A *level* is a number of streams. A level *plays* if enough answers play without a gap; otherwise it *fails*. The search
assumes: if a level plays, then all smaller levels play too. A level near the capacity may fail by chance. In this case,
the search would find less than the true capacity. So if only a few answers at a level had gaps, the level is measured
once more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from msgspec import Struct

# If the number of streams is doubled, and the sound per second grows by at most this factor, the server is saturated.
_GROWTH = 1.05
# The search ends when the largest level that plays and the next larger level that fails are close: their difference is
# 1 stream, or at most a twentieth (1 / `_RESOLUTION`) of the level that plays.
_RESOLUTION = 20
_ROUNDING = 1e-9


class Trial(Struct, frozen=True):
    """One measurement of a level.

    Attributes:
        streams: Number of requests in flight.
        answers: Number of measured requests.
        gapless: Number of measured requests whose answers played to the end without a gap and had the requested length.
        audio_seconds_per_second: Seconds of sound that arrived per second.
    """

    streams: int
    answers: int
    gapless: int
    audio_seconds_per_second: float

    def plays(self, share: float) -> bool:
        return self.gapless >= share * self.answers - _ROUNDING

    def joined(self, other: Trial) -> Trial:
        """Two measurements of one level, joined into one."""
        both = self.audio_seconds_per_second + other.audio_seconds_per_second
        return Trial(self.streams, self.answers + other.answers, self.gapless + other.gapless, both / 2)


class Capacity(Struct, frozen=True):
    """The result of a search.

    Attributes:
        gapless_share: Fraction of the answers that must play without a gap.
        streams: The largest measured level at which at least this fraction of the answers played without a gap. 0 if
            one stream already has gaps.
        fails_at: The smallest measured level above `streams` at which less than this fraction of the answers played
            without a gap. None if the search ended at its limit.
        audio_seconds_per_second: Seconds of sound per second at the capacity; None if the capacity is 0.
        loudest: The level at which the most sound per second arrived.
        loudest_audio_seconds_per_second: Seconds of sound per second at that level.
        saturated: Whether the last increase of the number of streams hardly increased the sound per second. If True,
            even more streams would not increase the sound per second.
        ratio: If the server was saturated, `streams` divided by `loudest_audio_seconds_per_second`. The ratio is at
            most about 1, because each stream needs one second of sound per second.
        trials: The measurements of all levels. The order is by the number of streams.
    """

    gapless_share: float
    streams: int
    fails_at: int | None
    audio_seconds_per_second: float | None
    loudest: int
    loudest_audio_seconds_per_second: float
    saturated: bool
    ratio: float | None
    trials: list[Trial]


Measure: TypeAlias = Callable[[int], Awaitable[Trial]]


async def find_capacity(measure: Measure, *, share: float, most: int) -> Capacity:
    """Search the levels from 1 to `most`, in two steps:

    1. Double the number of streams until a level fails and has hardly more sound per second than the smaller levels.
       While the sound per second still grows, double the number even after a level has failed. In this way, the search
       also finds the maximum of the sound per second.
    2. Bisect between the largest level that plays and the next larger level that fails, until their difference is 1
       stream or at most 5 % of the level that plays.

    Args:
        measure: Measures the level with the given number of streams.
        share: Fraction of the answers that must play without a gap.
        most: The largest level to measure.
    """
    trials: dict[int, Trial] = {}
    streams, most_sound = 1, 0.0
    while True:
        trial = trials[streams] = await _judge(measure, streams, share)
        saturated = trial.audio_seconds_per_second <= _GROWTH * most_sound
        most_sound = max(most_sound, trial.audio_seconds_per_second)
        if streams == most or (saturated and not trial.plays(share)):
            break
        streams = min(2 * streams, most)
    plays = max((streams for streams, trial in trials.items() if trial.plays(share)), default=0)
    fails = min((streams for streams in trials if streams > plays), default=None)
    while fails is not None and fails - plays > max(1, plays // _RESOLUTION):
        streams = (plays + fails) // 2
        trials[streams] = await _judge(measure, streams, share)
        if trials[streams].plays(share):
            plays = streams
        else:
            fails = streams
    loudest = max(trials.values(), key=lambda trial: trial.audio_seconds_per_second)
    most_sound = loudest.audio_seconds_per_second
    return Capacity(
        gapless_share=share,
        streams=plays,
        fails_at=fails,
        audio_seconds_per_second=trials[plays].audio_seconds_per_second if plays else None,
        loudest=loudest.streams,
        loudest_audio_seconds_per_second=most_sound,
        saturated=saturated,
        ratio=plays / most_sound if saturated and most_sound else None,
        trials=[trials[streams] for streams in sorted(trials)],
    )


async def _judge(measure: Measure, streams: int, share: float) -> Trial:
    """Measure a level. If the level fails, but a second measurement without any gap could still make it play, measure
    the level once more. The result then joins both measurements.
    """
    trial = await measure(streams)
    hopeful = Trial(streams, 2 * trial.answers, trial.gapless + trial.answers, 0.0)
    if trial.plays(share) or not hopeful.plays(share):
        return trial
    return trial.joined(await measure(streams))
