"""Cuts a long sound into pieces. The cuts are at places where the sound is quiet. If there is a pause near the end of a
piece, no word is divided.
"""

from __future__ import annotations

import numpy

# The sound is divided into this number of frames per second. Then the loudness of the frames is compared.
_FRAMES_PER_SECOND = 50
# Number of frames over which the loudness is averaged: 0.3 s. The pauses between sentences are longer than the pauses
# between words. So a cut in a pause of at least this length is preferred.
_AVERAGED = 15
# Loudness is rounded to steps of this number of decibels. So a pause with a little noise in it does not look like two
# pauses. Everything below the lowest loudness counts as silence.
_STEP_DECIBELS = 3.0
_SILENCE_DECIBELS = -80.0


def piece_ends(wave: numpy.ndarray, rate: int, most_seconds: float) -> list[int]:
    """The samples at which the pieces of a sound end. The last of them is the end of the sound.

    A piece lasts at most `most_seconds`. Each piece except the last lasts at least half of `most_seconds`. If there are
    several pieces, the last piece lasts at least a quarter of `most_seconds`. Within these limits, each cut is in the
    middle of the longest run of the quietest frames.

    Args:
        wave: float32 [samples], at `rate` samples per second.
    """
    frame = rate // _FRAMES_PER_SECOND
    most = max(int(most_seconds * rate) // frame, 4)
    loudness = _loudness(wave, frame)
    ends: list[int] = []
    begin = 0
    while len(wave) - begin * frame > most * frame:
        left = len(loudness) - begin
        first, last = begin + most // 2, begin + min(most, left - most // 4)
        begin = _middle_of_pause(loudness, first, last)
        ends.append(begin * frame)
    return [*ends, len(wave)]


def _loudness(wave: numpy.ndarray, frame: int) -> numpy.ndarray:
    """The loudness around the beginning of each whole frame, in steps: int64 [frames]."""
    count = len(wave) // frame
    frames = wave[: count * frame].reshape(count, frame)
    power = numpy.einsum("ij,ij->i", frames, frames, dtype=numpy.float64) / frame
    sums = numpy.concatenate([[0.0], numpy.cumsum(power)])
    at = numpy.arange(count)
    low, high = numpy.maximum(at - _AVERAGED // 2, 0), numpy.minimum(at + _AVERAGED // 2 + 1, count)
    mean = numpy.maximum((sums[high] - sums[low]) / (high - low), 0.0)
    decibels = 10 * numpy.log10(mean + 10 ** (_SILENCE_DECIBELS / 10))
    return numpy.round(decibels / _STEP_DECIBELS).astype(numpy.int64)


def _middle_of_pause(loudness: numpy.ndarray, first: int, last: int) -> int:
    """The middle of the longest run of the quietest frames in this range. If several runs are the longest, the last
    of them counts.
    """
    quiet = numpy.flatnonzero(loudness[first : last + 1] == loudness[first : last + 1].min()) + first
    runs = numpy.split(quiet, numpy.flatnonzero(numpy.diff(quiet) > 1) + 1)
    longest = max(reversed(runs), key=len)
    return int(longest[len(longest) // 2])
