"""Computes the features of codec frames: stacked log-mel spectra, one row for each 80 ms."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

RATE = 24000
FRAME = 1920
"""Samples of one codec frame (80 ms)."""
STACK = 4
"""Mel spectra in one codec frame."""
BINS = 80
SIZE = STACK * BINS
"""Numbers in one codec frame's features."""

_HOP = FRAME // STACK
_WINDOW = 1024
_FLOOR = 1e-4  # amplitude relative to full scale below which a sound counts as silence


def frames(sound: Tensor) -> int:
    """The number of codec frames of `sound`. The last frame is padded with silence."""
    return -(-sound.shape[-1] // FRAME)


def features(sound: Tensor) -> Tensor:
    """Features [frames, SIZE] of `sound` [samples] at 24 kHz. Frame k covers samples 1920 k to 1920 (k + 1)."""
    padded = F.pad(sound, (0, frames(sound) * FRAME - sound.shape[-1]))
    return log_mel(padded).view(-1, SIZE)


def log_mel(sound: Tensor, window: int = _WINDOW, hop: int = _HOP) -> Tensor:
    """Natural logs of the mel spectrum's amplitudes: [..., samples / hop, BINS], each spectrum centred on its hop.

    `window` is the number of samples that a spectrum covers, at most 1024.
    """
    around = (_WINDOW - hop) // 2
    shape = torch.hann_window(window)
    spectrum = torch.stft(
        F.pad(sound, (around, around)), _WINDOW, hop, window, shape, center=False, return_complex=True
    )
    amplitudes = spectrum.abs().transpose(-1, -2) / (shape.sum() / 2)
    return (amplitudes @ _filters()).clamp(min=_FLOOR).log()


@functools.cache
def _filters() -> Tensor:
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(_WINDOW // 2 + 1, BINS, 50.0, RATE / 2, RATE, norm=None, mel_scale="slaney")
    return torch.from_numpy(bank).float()
