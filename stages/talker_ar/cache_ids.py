"""Makes the ids of the talker's prompt rows for the prefix cache. Two rows with the same id have the same input and the
same position.

The ids do not come from the media of the prompt. At a media row, the talker's input is a state of the thinker. This
state depends on all earlier rows of the thinker's prompt, including the earlier answers, which the talker does not get.

An id is an int64 in [2**62, 2**63), so it is beyond the codec vocabulary. There are two forms:

- The id of a text row contains the kind of the row, the token and the position.
- Consecutive media rows are divided into blocks. The ids of a block come from one hash of all states and positions of
  the block, because a hash for each row would take ten times as long. So two prompts can share whole blocks
  of media rows in the prefix cache, but not parts of a block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy
import torch

from stages.messages import ASSISTANT_ROWS, TalkerPrompt

FIRST_CACHE_ID = 2**62

BLOCK_ROWS = 64
"""Maximum number of rows in a block. About eight seconds of sound have 104 rows."""

_HASHED = 1 << 61
_KIND_SHIFT, _TOKEN_SHIFT = 58, 32  # a token id has at most 26 bits, a float32 position has 32

# The kinds of the nine assistant rows. Kind 0 is a row that consists of text only. Kinds 1 to 6 are the six rows that
# also contain a codec code, in their order.
_ASSISTANT_KINDS = (0, 0, 0, 1, 2, 3, 4, 5, 6)


def prompt_cache_ids(prompt: TalkerPrompt, *, speaker: int, first: int) -> torch.Tensor:
    """The ids of all rows of a prompt: int64 [r + 9].

    Args:
        speaker: The codec code of the speaker.
        first: The first token of the text, which belongs to the last row.
    """
    ids = prompt.ids.numpy()
    rows = len(ids) + ASSISTANT_ROWS
    content = numpy.empty(rows, numpy.int64)
    content[: len(ids)] = ids
    content[len(ids) :] = [*prompt.assistant_ids, 0, 0, 0, speaker, 0, first]
    content[len(ids) :] |= numpy.array(_ASSISTANT_KINDS) << _KIND_SHIFT - _TOKEN_SHIFT
    if prompt.positions is None:
        positions = numpy.broadcast_to(numpy.arange(rows, dtype=numpy.float32), (3, rows))
    else:
        positions = prompt.positions.numpy()
    # Only media rows have positions that differ between the axes. If a text row had such positions, it would be hashed.
    hashed = (positions != positions[0]).any(axis=0)
    if prompt.media_rows is not None:
        assert prompt.media_ids is not None
        media_rows = prompt.media_rows.numpy()
        content[media_rows] = prompt.media_ids.numpy()
        hashed[media_rows] = True
    bits = numpy.ascontiguousarray(positions[0]).view(numpy.uint32).astype(numpy.int64)
    cache_ids = content << _TOKEN_SHIFT | bits | FIRST_CACHE_ID
    for start, end in _blocks(hashed):
        cache_ids[start:end] = _hashes(content[start:end], positions[:, start:end])
    return torch.from_numpy(cache_ids)


def _blocks(marked: numpy.ndarray) -> Iterator[tuple[int, int]]:
    """The blocks [start, end) of true values in a bool [n]."""
    edges = numpy.flatnonzero(numpy.diff(marked, prepend=False, append=False)).tolist()
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        for start in range(first, last, BLOCK_ROWS):
            yield start, min(start + BLOCK_ROWS, last)


def _hashes(content: numpy.ndarray, positions: numpy.ndarray) -> numpy.ndarray:
    """Ids int64 [k] for consecutive rows, from their content, int64 [k], and their positions, float32 [3, k]. Each id
    depends on all of these rows.
    """
    stream = hashlib.shake_256(content.tobytes() + positions.tobytes()).digest(8 * len(content))
    return numpy.frombuffer(stream, dtype="<i8") & (_HASHED - 1) | _HASHED | FIRST_CACHE_ID
