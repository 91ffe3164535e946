"""How many embedding rows the audio tower makes of a number of mel frames; cheap to import, so any stage may use it."""

from __future__ import annotations

FULL_CHUNK_ROWS = 13

CONVOLVED_CHUNKS = 64
"""Chunks that the tower's convolutions process at a time. Its own default, 500 (eight minutes), briefly needs 4 GB."""


def audio_rows(frames: int, chunk_frames: int = 100) -> int:
    """Rows for `frames` mel frames: 13 for every whole chunk, and an eighth (rounded up) of the frames that remain.

    The tower halves the frames three times by convolutions, which start afresh in every chunk.
    """
    chunks, rest = divmod(frames, chunk_frames)
    return FULL_CHUNK_ROWS * chunks + -(-rest // 8)
