"""Collects the blocks of a decoded sound as mono sound at the model's sampling rate, within a length limit."""

from __future__ import annotations

import numpy
import soxr

from omni_pipeline.errors import bad_request
from stages.preprocessing.budget import PIECE_WORK, DecodingBudget

# A file with a sampling rate outside these bounds is refused as damaged or malicious, because nobody uses such rates in
# the supported formats.
MIN_RATE, MAX_RATE = 1_000, 768_000

# Maximum number of samples per second, on average: 96 kHz in eight channels. Without this limit, a small file could
# keep the decoder busy for an hour, if the file contains silence at the highest rate, in as many channels as the format
# allows.
SAMPLES_PER_SECOND = 768_000

# Largest accepted sample value. It is far above the scales that files use, and far below the values at which mel
# energies overflow.
MAX_AMPLITUDE = 1e4


def sound_budget(max_seconds: float, param: str) -> DecodingBudget:
    """A limit on the work of decoding a sound that may be at most `max_seconds` long."""
    message = f"has more samples than are allowed in {max_seconds:g} seconds of audio"
    return DecodingBudget(int(max_seconds * SAMPLES_PER_SECOND), lambda: _too_long(message, param))


class Waveform:
    """A sound that grows with every decoded block; `samples` returns the result. The sampling rate of the blocks may
    change: see `begin`.

    Attributes:
        budget: The limit on the work of decoding the sound. `add` charges each block. The decoder itself charges its
            other work.

    Args:
        rate: Samples per second of the result.
        max_seconds: Maximum length; `add` refuses a longer sound.
        param: The request field, for error messages.
    """

    def __init__(self, rate: int, *, max_seconds: float, param: str) -> None:
        self._rate = rate
        self._param = param
        self._max_seconds = max_seconds
        self.budget = sound_budget(max_seconds, param)
        self._blocks: list[numpy.ndarray] = []
        self._resampler: soxr.ResampleStream | None = None
        self._source_rate = rate
        self._earlier_seconds = 0.0
        self._frames = 0  # number of samples since the last `begin`
        self._to_skip = self._to_skip_next = 0  # numbers of frames to skip: in this piece, and in the next piece

    @property
    def seconds(self) -> float:
        """The length of the sound that was added."""
        return self._earlier_seconds + self._frames / self._source_rate

    def begin(self, source_rate: int) -> None:
        """Begin a piece of sound whose blocks have `source_rate` samples per second.

        Raises:
            OmniError: 400 ``invalid_audio`` for an impossible rate.
        """
        if not MIN_RATE <= source_rate <= MAX_RATE:
            raise self._invalid(
                f"its sampling rate is {source_rate} Hz, but it must be between {MIN_RATE} and {MAX_RATE} Hz"
            )
        self.budget.charge(PIECE_WORK)
        self._earlier_seconds, self._frames = self.seconds, 0
        self._to_skip, self._to_skip_next = self._to_skip_next, 0
        if source_rate == self._source_rate:
            return  # pieces of equal rate are resampled together, so that the border between them cannot be heard
        self._end_resampling()
        self._source_rate = source_rate
        if source_rate != self._rate:
            self._resampler = soxr.ResampleStream(source_rate, self._rate, 1, dtype="float32")

    def begin_again(self) -> None:
        """Prepare for another decoder, which decodes the current piece again from its beginning. After the next call of
        `begin`, `add` leaves out the samples of this piece that have been added already.
        """
        self._to_skip_next = self._frames

    def add(self, block: numpy.ndarray) -> None:
        """Append float32 [frames, channels]; channels are averaged.

        Raises:
            OmniError: 400 ``audio_too_long``, or ``invalid_audio`` for samples that are not sound.
        """
        self.budget.charge(block.size)
        if self._to_skip:
            skipped = min(self._to_skip, len(block))
            self._to_skip -= skipped
            block = block[skipped:]
        if not len(block):
            return
        self._frames += len(block)
        if self.seconds > self._max_seconds:
            raise _too_long(f"is longer than {self._max_seconds:g} seconds", self._param)
        if not numpy.abs(block).max() <= MAX_AMPLITUDE:  # this form of the condition catches NaN too
            raise self._invalid("at least one sample is infinite, NaN (not a number), or far too large")
        mono = block.mean(axis=1, dtype=numpy.float32) if block.shape[1] > 1 else block[:, 0]
        self._append(mono if self._resampler is None else self._resampler.resample_chunk(mono))

    def samples(self) -> numpy.ndarray:
        """The complete sound: float32 [samples] at the model's rate.

        Raises:
            OmniError: 400 ``invalid_audio`` if no sample was added.
        """
        self._end_resampling()
        if not self._blocks:
            raise self._invalid("it contains no sound")
        return numpy.concatenate(self._blocks)

    def _end_resampling(self) -> None:
        if self._resampler is not None:
            self._append(self._resampler.resample_chunk(numpy.empty(0, numpy.float32), last=True))
            self._resampler = None

    def _append(self, block: numpy.ndarray) -> None:
        if len(block):
            self._blocks.append(numpy.array(block, numpy.float32))  # the decoder may reuse its buffer

    def _invalid(self, reason: str) -> Exception:
        return bad_request(f"The audio cannot be used: {reason}.", param=self._param, code="invalid_audio")


def _too_long(what: str, param: str) -> Exception:
    return bad_request(f"The audio {what}.", param=param, code="audio_too_long")
