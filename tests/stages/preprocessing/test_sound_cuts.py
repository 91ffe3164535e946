"""A long sound is cut in its pauses, into pieces that together are the whole sound."""

from itertools import pairwise

import numpy
import pytest
from media_files import RATE

from stages.preprocessing.sound_cuts import piece_ends


def noise(seconds: float, seed: int = 0, loudness: float = 0.1) -> numpy.ndarray:
    rng = numpy.random.default_rng(seed)
    return (loudness * rng.standard_normal(int(seconds * RATE))).astype(numpy.float32)


def lengths(ends: list[int]) -> list[float]:
    return [(end - begin) / RATE for begin, end in pairwise([0, *ends])]


@pytest.mark.parametrize("seconds", [0.0, 0.005, 1.0, 4.0])
def test_a_sound_that_is_not_longer_than_a_piece_is_one(seconds: float) -> None:
    wave = noise(seconds)
    assert piece_ends(wave, RATE, 4.0) == [len(wave)]


@pytest.mark.parametrize("seconds", [4.001, 4.5, 5.9, 6.1, 8.0, 8.02, 11.9, 60.0, 3601.3])
@pytest.mark.parametrize("make", [noise, lambda seconds: numpy.zeros(int(seconds * RATE), numpy.float32)])
def test_pieces_are_neither_long_nor_tiny(seconds: float, make) -> None:
    wave = make(seconds)
    ends = piece_ends(wave, RATE, 4.0)
    assert ends[-1] == len(wave)
    *others, last = lengths(ends)
    assert all(1.98 <= length <= 4.0 for length in others)
    assert 0.98 <= last <= 4.0
    assert len(ends) <= 2 * seconds / 4 + 1


@pytest.mark.parametrize("floor", [0.0, 0.001, 0.02])
def test_cuts_are_in_the_middle_of_pauses(floor: float) -> None:
    wave = noise(20)
    pauses = [3.0, 6.2, 9.1, 12.9, 16.0]
    for at in pauses:
        wave[int(at * RATE) : int((at + 0.5) * RATE)] = noise(0.5, 1, floor)
    cuts = [end / RATE for end in piece_ends(wave, RATE, 4.0)[:-1]]
    assert cuts == pytest.approx([at + 0.25 for at in pauses], abs=0.1)


def test_the_longest_of_several_pauses_is_taken() -> None:
    wave = noise(7)
    for at, seconds in ((2.2, 0.35), (2.8, 0.6), (3.6, 0.35)):
        wave[int(at * RATE) : int((at + seconds) * RATE)] = 0
    assert piece_ends(wave, RATE, 4.0)[0] / RATE == pytest.approx(3.1, abs=0.1)


def test_a_sound_at_any_rate_is_cut() -> None:
    wave = noise(10)
    assert piece_ends(wave, 8000, 4.0)[-1] == len(wave)
