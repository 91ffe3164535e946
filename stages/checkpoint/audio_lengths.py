"""How many embedding rows the audio tower makes of a number of mel frames. Imports nothing, so that any stage may."""

from __future__ import annotations

FULL_CHUNK_ROWS = 13

CONVOLVED_CHUNKS = 64
"""Chunks that the tower's convolutions take at a time. Its own 500 (eight minutes) need 4 GB for a moment."""


def audio_rows(frames: int, chunk_frames: int = 100) -> int:
    """Rows for `frames` mel frames: 13 for every whole chunk, and an eighth (rounded up) of the frames that remain.

    The convolutions that halve the frames three times start anew in every chunk.
    """
    chunks, rest = divmod(frames, chunk_frames)
    return FULL_CHUNK_ROWS * chunks + -(-rest // 8)
