"""Defines the sampling rate and the number of channels of the speech in all answers."""

from __future__ import annotations

SAMPLE_RATE = 24_000  # Hz
CHANNELS = 1
