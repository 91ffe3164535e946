"""What the speech in every answer is: its sampling rate and its channels."""

from __future__ import annotations

SAMPLE_RATE = 24_000  # Hz
CHANNELS = 1
