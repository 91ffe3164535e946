"""Finds by bisection how many spoken streams a server plays at once without a gap.

The search assumes that a server that plays N streams also plays fewer. A level near the border may fail by chance, and
then the search finds less than the true capacity. So a level is measured once more if only a few answers had gaps.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from msgspec import Struct

_GROWTH = 1.05  # the sound per second of twice the streams, divided by the most so far, of a server with room for more
_RESOLUTION = 20  # the streams between the greatest level that plays and the next that was measured: 1 in 20 at most
_ROUNDING = 1e-9


class Trial(Struct, frozen=True):
    """One measurement of a level.

    Attributes:
        streams: Number of requests in flight.
        answers: Number of measured requests.
        gapless: Number of them that played without a gap to the end and had the requested length.
        audio_seconds_per_second: Seconds of sound that arrived per second.
    """

    streams: int
    answers: int
    gapless: int
    audio_seconds_per_second: float

    def plays(self, share: float) -> bool:
        return self.gapless >= share * self.answers - _ROUNDING

    def joined(self, other: Trial) -> Trial:
        """Both measurements as one."""
        both = self.audio_seconds_per_second + other.audio_seconds_per_second
        return Trial(self.streams, self.answers + other.answers, self.gapless + other.gapless, both / 2)


class Capacity(Struct, frozen=True):
    """The result of a search.

    Attributes:
        gapless_share: Share of the answers that must play without a gap.
        streams: The largest measured level at which this share played; 0 if one stream alone has gaps.
        fails_at: The smallest larger level at which it did not; None if the search ended at its limit.
        audio_seconds_per_second: Seconds of sound per second at the capacity; None if the capacity is 0.
        loudest: The level at which most sound arrived.
        loudest_audio_seconds_per_second: Seconds of sound per second at that level.
        saturated: Whether twice the streams made hardly more sound, so that no larger level would make more.
        ratio: If the server was saturated, `streams` divided by `loudest_audio_seconds_per_second`. A stream needs one
            second of sound per second, so about 1 is the most that the throughput allows.
        trials: What was measured at each level, by the number of streams.
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
    """Search the levels from 1 to `most`.

    1. Double the streams, until a level has gaps and makes hardly more sound than the levels before. Levels that have
       gaps but make more sound are passed, to find the most sound that the server makes.
    2. Bisect between the largest level that plays and the next larger one that does not, until they are neighbours, or
       less than 5 % apart.

    Args:
        measure: Measures the level with that number of streams.
        share: Share of the answers that must play without a gap.
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
    """Measure a level. If it does not play, but would if the same number of answers more had no gap, measure it once
    more; both measurements count.
    """
    trial = await measure(streams)
    hopeful = Trial(streams, 2 * trial.answers, trial.gapless + trial.answers, 0.0)
    if trial.plays(share) or not hopeful.plays(share):
        return trial
    return trial.joined(await measure(streams))
