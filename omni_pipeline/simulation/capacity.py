"""Searches for the gapless capacity of a simulated deployment: the largest number of streams whose sound has no gaps.
`sgl-omni bench --capacity` measures the gapless capacity of a server in the same way.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from omni_pipeline.simulation.load import Load, RequestShape
from omni_pipeline.simulation.results import Prediction
from omni_pipeline.simulation.run import Scenario, simulate

GAPLESS_SHARE = 0.99
"""Fraction of the answers that must play without a gap."""

_REQUESTS = 50
_PER_STREAM = 3
_GROWTH = 1.05
_RESOLUTION = 20


class Capacity(Struct, frozen=True):
    """The result of a search.

    Attributes:
        streams: The largest number of streams that play without a gap; 0 if one stream already has gaps.
        fails_at: The smallest level above `streams` at which the search has found gaps (see `find_capacity`). None if
            the search has found no gaps above `streams`.
        audio_seconds_per_second: Seconds of sound that arrive per second. This is the largest value among all simulated
            levels.
    """

    streams: int
    fails_at: int | None
    audio_seconds_per_second: float


def find_capacity(scenario: Scenario, shape: RequestShape, *, frame_seconds: float, most: int, seed: int) -> Capacity:
    """Search for the largest number of streams that play without a gap. A *level* is one number of streams.

    First, the search doubles the level, but not beyond `most`. The doubling ends at a level that has gaps and makes at
    most 5 % more sound per second than the best smaller level. Then the search bisects between the largest level
    without gaps and the next larger level with gaps. The search ends when these two levels differ by 1 stream, or by at
    most 5 % of the level without gaps.

    Args:
        shape: The requests; they must have audio frames.
        frame_seconds: Length of the sound of a frame.
        most: The largest number of streams to simulate.
    """
    levels: dict[int, Prediction] = {}

    def plays(streams: int) -> bool:
        load = Load(
            streams=streams,
            requests=max(_REQUESTS, _PER_STREAM * streams),
            spread=shape.audio_frames * frame_seconds,
            seed=seed,
        )
        found = levels[streams] = _judge(scenario, load, shape)
        return (found.gapless or 0.0) >= GAPLESS_SHARE

    streams, loudest, best, fails = 1, 0.0, 0, None
    while True:
        played = plays(streams)
        sound = levels[streams].audio_seconds_per_second
        saturated = sound <= _GROWTH * loudest
        loudest = max(loudest, sound)
        best = streams if played else best
        fails = streams if not played and fails is None else fails
        if streams == most or (saturated and not played):
            break
        streams = min(2 * streams, most)
    if fails is not None and fails < best:  # a larger level plays
        fails = next((level for level in sorted(levels) if level > best), None)
    while fails is not None and fails - best > max(1, best // _RESOLUTION):
        streams = (best + fails) // 2
        if plays(streams):
            best = streams
        else:
            fails = streams
    loudest = max(level.audio_seconds_per_second for level in levels.values())
    return Capacity(best, fails, loudest)


def _judge(scenario: Scenario, load: Load, shape: RequestShape) -> Prediction:
    """Simulate a level. If too many answers have gaps, a second simulation with other random times may follow. It
    follows only if the mean share of answers without gaps in both simulations could reach `GAPLESS_SHARE`. After a
    second simulation, the result contains this mean share.
    """
    found = simulate(scenario, load, shape)
    share = found.gapless or 0.0
    if share >= GAPLESS_SHARE or (share + 1) / 2 < GAPLESS_SHARE:
        return found
    again = simulate(scenario, msgspec.structs.replace(load, seed=load.seed + 1), shape)
    return msgspec.structs.replace(found, gapless=(share + (again.gapless or 0.0)) / 2)
