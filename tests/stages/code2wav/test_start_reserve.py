"""The reserve grows with late chunks, and shrinks with time."""

from __future__ import annotations

import pytest

from stages.code2wav.start_reserve import GROWTH_SECONDS, HALF_LIFE_SECONDS, MOST_SECONDS, StartReserve


def test_without_late_chunks_there_is_no_reserve() -> None:
    assert StartReserve().seconds(1e6) == 0.0


def test_each_late_chunk_makes_the_reserve_grow() -> None:
    reserve = StartReserve()
    reserve.grow(10.0)
    assert reserve.seconds(10.0) == GROWTH_SECONDS
    reserve.grow(10.0)
    assert reserve.seconds(10.0) == 2 * GROWTH_SECONDS


def test_the_reserve_is_bounded() -> None:
    reserve = StartReserve()
    for _ in range(100):
        reserve.grow(0.0)
    assert reserve.seconds(0.0) == MOST_SECONDS


def test_the_reserve_shrinks_to_half_in_its_half_life() -> None:
    reserve = StartReserve()
    reserve.grow(5.0)
    assert reserve.seconds(5.0 + HALF_LIFE_SECONDS) == pytest.approx(GROWTH_SECONDS / 2)
    assert reserve.seconds(5.0 + 20 * HALF_LIFE_SECONDS) < 1e-6
