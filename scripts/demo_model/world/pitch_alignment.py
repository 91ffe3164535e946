"""Shifts the voiced stretches of speech with a constant pitch, so that all pulses of the voice are in phase.

espeak-ng starts each voiced stretch at an arbitrary phase. After the shift the tone has the same phase in all
stretches. A codec frame lasts exactly a whole number of periods, so the tone also has the same phase in all frames. So
equal codes can stand for one waveform, exact to the sample. No stretch moves by more than a few milliseconds. The sound
between two stretches becomes a little longer or shorter.
"""

import numpy as np

from demo_model.world.synthetic_voices import Sound

_PERIODS = 3
"""The number of periods over which the phase is measured."""
_STEP = 0.004
"""Seconds between two measurements of the phase."""
_VOICED = 0.0015
"""The minimum amplitude of the tone in a voiced stretch."""
_STEADY = 0.03
"""The maximum change of the phase between two measurements within a stretch, in periods."""


def in_step(sound: Sound, tone: float, rate: int) -> Sound:
    """`sound` with its tone of `tone` hertz shifted to one phase, which is zero at sample 0. The length of the sound
    does not change.
    """
    hop = round(_STEP * rate)
    phase, voiced = _phases(sound, tone, rate, hop)
    if not voiced.any():
        return sound
    delays = np.empty(len(phase))
    before = 0.0
    for index in np.flatnonzero(voiced):
        # Delays that differ by whole periods all bring this place into phase. Take the delay that is nearest to the
        # previous delay. If this nearest delay is longer than a period, take the shortest delay instead.
        delay = phase[index] + round(before - phase[index])
        before = delays[index] = delay - round(delay) if abs(delay) > 1 else delay
    centres = np.arange(len(phase)) * hop
    samples = np.arange(len(sound), dtype=np.float64)
    delay = np.interp(samples, centres[voiced], delays[voiced]) * rate / tone
    return np.interp(samples - delay, samples, sound).astype(np.float32)


def _phases(sound: Sound, tone: float, rate: int, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """The tone's phase in periods at every `hop` samples, and whether the tone is steady there."""
    turned = sound * np.exp(-2j * np.pi * tone * np.arange(len(sound)) / rate)
    window = np.hanning(round(_PERIODS * rate / tone) | 1)
    around = np.pad(turned, len(window) // 2)
    part = np.lib.stride_tricks.sliding_window_view(around, len(window))[::hop] @ (window / window.sum())
    phase = np.angle(part) / (2 * np.pi)
    moves = np.abs((np.diff(phase) + 0.5) % 1 - 0.5)
    steady = np.pad(moves, (1, 0), constant_values=1) + np.pad(moves, (0, 1), constant_values=1) < 2 * _STEADY
    return phase, steady & (np.abs(part) > _VOICED)
