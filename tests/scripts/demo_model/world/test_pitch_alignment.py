"""Voiced stretches with the same pitch are shifted until they are in phase. The rest of the sound hardly changes."""

import numpy as np
import pytest
from demo_model.world.pitch_alignment import in_step

RATE, TONE = 24000, 125


def _stretches(*phases: float) -> np.ndarray:
    """A sound with one tone for each given phase (in periods). Each tone lasts a fifth of a second, and the tones are
    separated by silence.
    """
    time = np.arange(RATE // 5) / RATE
    fade = np.minimum(1, 20 * np.minimum(time, time[::-1]))
    parts = [np.concatenate([0.1 * fade * np.cos(2 * np.pi * (TONE * time + p)), np.zeros(1200)]) for p in phases]
    return np.concatenate([np.zeros(1200), *parts]).astype(np.float32)


def _phase(sound: np.ndarray, start: int) -> float:
    """The phase of the tone in the 80 ms from `start`, relative to a tone that begins at sample 0."""
    samples = np.arange(start, start + 1920)
    return float(np.angle((sound[samples] * np.exp(-2j * np.pi * TONE * samples / RATE)).sum()) / (2 * np.pi))


def test_all_stretches_get_phase_zero() -> None:
    sound = in_step(_stretches(0.0, 0.3, -0.2, 0.45), TONE, RATE)

    middles = [1200 + index * 6000 + 1440 for index in range(4)]
    assert [_phase(sound, middle) for middle in middles] == pytest.approx([0] * 4, abs=0.02)


def test_nothing_moves_by_more_than_a_period() -> None:
    before = _stretches(0.2, -0.4)
    after = in_step(before, TONE, RATE)

    assert len(after) == len(before)
    edges = [np.flatnonzero(np.abs(sound) > 0.01)[[0, -1]] for sound in (before, after)]
    assert np.abs(edges[0] - edges[1]).max() <= RATE / TONE


def test_a_sound_without_a_tone_is_left_alone() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 1e-3

    assert np.array_equal(in_step(noise, TONE, RATE), noise)
