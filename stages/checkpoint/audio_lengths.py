"""Computes the number of embedding rows that the audio tower makes from mel frames. The module is cheap to import."""

from __future__ import annotations

FULL_CHUNK_ROWS = 13

CONVOLVED_CHUNKS = 64
"""Number of chunks that the convolutions process at a time. The tower's default (500, eight minutes) needs 4 GB."""


def audio_rows(frames: int, chunk_frames: int = 100) -> int:
    """Number of rows for `frames` mel frames: 13 rows for every complete chunk, and one row for every eight of the
    remaining frames (rounded up).

    Each of three convolutions halves the number of frames of a chunk. No convolution reaches across the border of a
    chunk.
    """
    chunks, rest = divmod(frames, chunk_frames)
    return FULL_CHUNK_ROWS * chunks + -(-rest // 8)
