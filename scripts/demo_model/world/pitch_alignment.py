"""Aligns the pulses of a voice that speaks with a constant pitch: shifts each voiced part of the speech in time, so
that all parts are in phase.

espeak-ng starts each voiced part at an arbitrary phase. After the shift, the tone has the same phase in all parts. A
codec frame lasts a whole number of periods, so the tone also has the same phase at the beginning of all frames. So
equal codes can stand for the same waveform, exact to the sample. No part moves by more than a few milliseconds. The
sound between two parts becomes a little longer or shorter.
"""

import numpy as np

from demo_model.world.synthetic_voices import Sound

_PERIODS = 3
"""The number of periods over which the phase is measured."""
_STEP = 0.004
"""Seconds between two measurements of the phase."""
_VOICED = 0.0015
"""The minimum amplitude of the tone in a voiced part."""
_STEADY = 0.03
"""The maximum change of the phase between two measurements within a voiced part, in periods."""


def in_step(sound: Sound, tone: float, rate: int) -> Sound:
    """`sound` with its voiced parts shifted in time, so that the tone has the same phase in all parts. If the tone of
    any part is continued back to sample 0, its phase there is zero. `tone` is the frequency of the tone in hertz. The
    length of the sound does not change.
    """
    hop = round(_STEP * rate)
    phase, voiced = _phases(sound, tone, rate, hop)
    if not voiced.any():
        return sound
    delays = np.empty(len(phase))
    before = 0.0
    for index in np.flatnonzero(voiced):
        # Several delays bring this part into phase; they differ by whole periods. Take the delay that is nearest to the
        # previous delay. But if this nearest delay is longer than a period, take the shortest delay.
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
