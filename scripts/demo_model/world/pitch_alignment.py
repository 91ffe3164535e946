"""Shifts the voiced stretches of a sound that has one tone, so that all its pulses keep one beat.

espeak-ng begins each voiced stretch at a moment of its own. Afterwards the tone has the same phase in all of them, and
as whole periods fill a codec frame, in all frames: equal codes can then be one waveform, to the sample. No stretch
moves by more than a few milliseconds; what is between two of them is drawn out or pressed together a little.
"""

import numpy as np

from demo_model.world.synthetic_voices import Sound

_PERIODS = 3
"""Over which the phase is measured."""
_STEP = 0.004
_VOICED = 0.0015
"""Least amplitude of the tone itself in a voiced stretch."""
_STEADY = 0.03
"""Most that the phase moves, in periods, between two measurements of a stretch."""


def in_step(sound: Sound, tone: float, rate: int) -> Sound:
    """`sound` with its tone of `tone` hertz in phase zero at sample 0, and so throughout; equally long."""
    hop = round(_STEP * rate)
    phase, voiced = _phases(sound, tone, rate, hop)
    if not voiced.any():
        return sound
    delays = np.empty(len(phase))
    before = 0.0
    for index in np.flatnonzero(voiced):
        # Of all delays that bring it into step, the one nearest to that of the stretch before; but not ever further.
        delay = phase[index] + round(before - phase[index])
        before = delays[index] = delay - round(delay) if abs(delay) > 1 else delay
    centres = np.arange(len(phase)) * hop
    samples = np.arange(len(sound), dtype=np.float64)
    delay = np.interp(samples, centres[voiced], delays[voiced]) * rate / tone
    return np.interp(samples - delay, samples, sound).astype(np.float32)


def _phases(sound: Sound, tone: float, rate: int, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """The tone's phase in periods at every `hop` samples, and whether there is a steady tone there."""
    turned = sound * np.exp(-2j * np.pi * tone * np.arange(len(sound)) / rate)
    window = np.hanning(round(_PERIODS * rate / tone) | 1)
    around = np.pad(turned, len(window) // 2)
    part = np.lib.stride_tricks.sliding_window_view(around, len(window))[::hop] @ (window / window.sum())
    phase = np.angle(part) / (2 * np.pi)
    moves = np.abs((np.diff(phase) + 0.5) % 1 - 0.5)
    steady = np.pad(moves, (1, 0), constant_values=1) + np.pad(moves, (0, 1), constant_values=1) < 2 * _STEADY
    return phase, steady & (np.abs(part) > _VOICED)
