"""Computes the number of embedding rows that the audio tower makes from mel frames. The module is cheap to import."""

from __future__ import annotations

FULL_CHUNK_ROWS = 13

CONVOLVED_CHUNKS = 64
"""Number of chunks that the convolutions process at a time. The tower's default is 500 chunks (eight minutes of sound),
which need 4 GB of memory.
"""


def audio_rows(frames: int, chunk_frames: int = 100) -> int:
    """Number of rows for a sound with this number of mel frames: 13 rows for every complete chunk, and one row for
    every eight remaining frames (rounded up).

    A chunk is `chunk_frames` mel frames. Each of three convolutions halves the number of frames of a chunk. Every chunk
    is convolved separately.
    """
    chunks, rest = divmod(frames, chunk_frames)
    return FULL_CHUNK_ROWS * chunks + -(-rest // 8)
