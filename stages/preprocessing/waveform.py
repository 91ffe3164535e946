"""Collects decoded sound, block by block, into mono at the model's sampling rate and within a length limit."""

from __future__ import annotations

import numpy
import soxr

from omni_pipeline.errors import bad_request
from stages.preprocessing.budget import DecodingBudget

# Rates outside these bounds mean a damaged or malicious file: no supported format is used with them.
MIN_RATE, MAX_RATE = 1_000, 768_000

# Maximum number of samples per second, on average: 96 kHz in eight channels. Without this bound, a small file of
# silence at the highest rate, in as many channels as a format allows, would keep the decoder busy for an hour.
SAMPLES_PER_SECOND = 768_000

# Largest sample value: far above any scale that files use, far below values whose mel energies overflow.
MAX_AMPLITUDE = 1e4


class Waveform:
    """Grows with every block; `samples` gives the result.

    Attributes:
        budget: The work of decoding the sound. Each block is charged; its decoder charges what else it does.

    Args:
        source_rate: Samples per second of the blocks.
        rate: Samples per second of the result.
        max_seconds: Maximum length; `add` refuses more sound.
        param: The request field, for error messages.

    Raises:
        OmniError: 400 ``invalid_audio`` for an impossible rate.
    """

    def __init__(self, source_rate: int, rate: int, *, max_seconds: float, param: str) -> None:
        self._param = param
        if not MIN_RATE <= source_rate <= MAX_RATE:
            raise self._invalid(f"its sampling rate is {source_rate} Hz")
        self._max_seconds = max_seconds
        self._frames_left = int(max_seconds * source_rate)
        self.budget = DecodingBudget(
            int(max_seconds * SAMPLES_PER_SECOND),
            lambda: self._too_long(f"has more samples than {max_seconds:g} seconds may have"),
        )
        self._blocks: list[numpy.ndarray] = []
        self._resampler = None
        if source_rate != rate:
            self._resampler = soxr.ResampleStream(source_rate, rate, 1, dtype="float32")

    def add(self, block: numpy.ndarray) -> None:
        """Append float32 [frames, channels]; channels are averaged.

        Raises:
            OmniError: 400 ``audio_too_long``, or ``invalid_audio`` for samples that are not sound.
        """
        if not len(block):
            return
        self._frames_left -= len(block)
        if self._frames_left < 0:
            raise self._too_long(f"is longer than {self._max_seconds:g} seconds")
        self.budget.charge(block.size)
        if not numpy.abs(block).max() <= MAX_AMPLITUDE:  # written this way it catches NaN too
            raise self._invalid("it has samples that are infinite or not a number")
        mono = block.mean(axis=1, dtype=numpy.float32) if block.shape[1] > 1 else block[:, 0]
        self._append(mono if self._resampler is None else self._resampler.resample_chunk(mono))

    def samples(self) -> numpy.ndarray:
        """Everything that was added: float32 [samples] at the model's rate.

        Raises:
            OmniError: 400 ``invalid_audio`` if no sample was added.
        """
        if self._resampler is not None:
            self._append(self._resampler.resample_chunk(numpy.empty(0, numpy.float32), last=True))
        if not self._blocks:
            raise self._invalid("it holds no sound")
        return numpy.concatenate(self._blocks)

    def _append(self, block: numpy.ndarray) -> None:
        if len(block):
            self._blocks.append(numpy.array(block, numpy.float32))  # the decoder may reuse its buffer

    def _too_long(self, what: str) -> Exception:
        return bad_request(f"The audio {what}.", param=self._param, code="audio_too_long")

    def _invalid(self, reason: str) -> Exception:
        return bad_request(f"The audio cannot be used: {reason}.", param=self._param, code="invalid_audio")
