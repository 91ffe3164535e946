"""The reserve grows with late chunks, and shrinks with time."""

from __future__ import annotations

import pytest

from stages.code2wav.start_reserve import GROWTH_SECONDS, HALF_LIFE_SECONDS, MOST_SECONDS, PAUSE_SECONDS, StartReserve


def test_without_late_chunks_there_is_no_reserve() -> None:
    assert StartReserve().seconds(1e6) == 0.0


def test_late_chunks_make_the_reserve_grow() -> None:
    reserve = StartReserve()
    reserve.grow(10.0)
    assert reserve.seconds(10.0) == GROWTH_SECONDS
    later = 10.0 + PAUSE_SECONDS
    left = reserve.seconds(later)
    reserve.grow(later)
    assert 0.0 < left < GROWTH_SECONDS
    assert reserve.seconds(later) == left + GROWTH_SECONDS


def test_chunks_that_are_late_at_the_same_time_count_once() -> None:
    reserve = StartReserve()
    for late in range(8):
        reserve.grow(10.0 + late * PAUSE_SECONDS / 8)
    assert reserve.seconds(10.0) == GROWTH_SECONDS


def test_the_reserve_is_bounded() -> None:
    reserve = StartReserve()
    for number in range(100):
        reserve.grow(number * PAUSE_SECONDS)
    assert reserve.seconds(99 * PAUSE_SECONDS) == MOST_SECONDS


def test_the_reserve_shrinks_to_half_in_its_half_life() -> None:
    reserve = StartReserve()
    reserve.grow(5.0)
    assert reserve.seconds(5.0 + HALF_LIFE_SECONDS) == pytest.approx(GROWTH_SECONDS / 2)
    assert reserve.seconds(5.0 + 20 * HALF_LIFE_SECONDS) < 1e-6
