"""Tests the search for the gapless capacity against servers whose capacity is known."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from gateway.bench.capacity import Capacity, Trial, find_capacity

ANSWERS = 50


class Law:
    """A simulated server.

    Args:
        gapless: Returns how many of 50 answers play without a gap. Its arguments are the number of streams (the level),
            and the number of earlier measurements of this level.
        each: Seconds of sound that each stream generates per second.
        most: Maximum seconds of sound that all streams together generate per second.

    Attributes:
        measured: How often each level was measured.
    """

    def __init__(self, gapless: Callable[[int, int], int], each: float = 4.0, most: float = 16.0) -> None:
        self.measured: Counter[int] = Counter()
        self._gapless = gapless
        self._each, self._most = each, most

    async def measure(self, streams: int) -> Trial:
        gapless = self._gapless(streams, self.measured[streams])
        self.measured[streams] += 1
        return Trial(streams, ANSWERS, gapless, min(self._each * streams, self._most))


async def search(law: Law, most: int = 256) -> Capacity:
    return await find_capacity(law.measure, share=0.99, most=most)


def plays_until(capacity: int) -> Callable[[int, int], int]:
    return lambda streams, _: ANSWERS if streams <= capacity else 0


@pytest.mark.parametrize("capacity", range(21))
async def test_small_capacity_is_found_exactly(capacity: int) -> None:
    law = Law(plays_until(capacity))
    found = await search(law)
    assert (found.streams, found.fails_at) == (capacity, capacity + 1)
    assert max(law.measured.values()) == 1
    assert [trial.streams for trial in found.trials] == sorted(law.measured)


@pytest.mark.parametrize("capacity", [21, 40, 63, 64, 100, 199])
async def test_large_capacity_is_found_to_one_in_twenty(capacity: int) -> None:
    law = Law(plays_until(capacity))
    found = await search(law)
    assert found.fails_at is not None
    assert found.streams <= capacity < found.fails_at <= found.streams * 1.05 + 1
    assert law.measured.total() <= 15


async def test_search_ends_at_its_limit() -> None:
    law = Law(plays_until(100))
    found = await search(law, most=12)
    assert (found.streams, found.fails_at) == (12, None)
    assert max(law.measured) == 12


async def test_most_sound_is_sought_beyond_the_first_gaps() -> None:
    found = await search(Law(plays_until(2), each=3.0, most=20.0))
    assert (found.streams, found.audio_seconds_per_second) == (2, 6.0)
    assert (found.loudest, found.loudest_audio_seconds_per_second, found.saturated) == (8, 20.0, True)
    assert found.ratio == 2 / 20.0


async def test_ratio_is_unknown_while_more_streams_make_more_sound() -> None:
    found = await search(Law(plays_until(2), each=3.0, most=200.0), most=8)
    assert (found.streams, found.loudest_audio_seconds_per_second) == (2, 24.0)
    assert (found.saturated, found.ratio) == (False, None)


async def test_server_without_sound_has_capacity_zero() -> None:
    law = Law(plays_until(0), each=0.0)
    found = await search(law)
    assert (found.streams, found.fails_at, found.audio_seconds_per_second, found.ratio) == (0, 1, None, None)
    assert set(law.measured) == {1}


@pytest.mark.parametrize(
    ("gaps", "measured", "plays"),
    [([1, 0], 2, True), ([1, 1], 2, False), ([2], 1, False)],
    ids=["1 gap, then none", "1 gap, then another", "2 gaps"],
)
async def test_level_near_the_mark_is_measured_once_more_and_both_count(
    gaps: list[int], measured: int, plays: bool
) -> None:
    law = Law(lambda streams, before: ANSWERS - (gaps[before] if streams == 4 else ANSWERS * (streams > 4)))
    found = await search(law)
    assert law.measured[4] == measured
    assert found.streams == (4 if plays else 3)
    [trial] = [trial for trial in found.trials if trial.streams == 4]
    assert (trial.answers, trial.gapless) == (50 * measured, 50 * measured - sum(gaps))


async def test_chance_failure_does_not_hide_a_larger_level_that_plays() -> None:
    law = Law(lambda streams, _: ANSWERS if streams <= 11 and streams != 4 else 0, each=2.0, most=100.0)
    assert (await search(law)).streams == 11


@pytest.mark.parametrize("seed", range(20))
async def test_noise_at_the_border_moves_the_result_little(seed: int) -> None:
    """With up to 13 streams, one answer in 2000 has a gap. With more streams, one answer in 8 has a gap."""
    rng = random.Random(seed)

    def gapless(streams: int, _: int) -> int:
        return sum(rng.random() > (0.0005 if streams <= 13 else 0.125) for _ in range(ANSWERS))

    assert (await search(Law(gapless))).streams == 13
