"""Makes the ids of media rows for the prefix cache. Two media rows get the same id if, and only if, the model would
compute the same values for both.

SGLang's radix cache compares prompts id by id, and all media of a kind have the same placeholder id. Each media row
gets a 63-bit number instead. The number comes from a hash of the media item's content key and positions. The hash
includes the positions, because the same frames at another frame rate make a different prompt. The number has 62 free
bits, so 62·k bits identify a media item of k rows.

SGLang 0.5.23 stores ids as int64 everywhere, and makes similar numbers for its own multimodal path. The numbers of this
module have the highest value bit (2**62) set, so that no number can be a token id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy
import torch

from omni_pipeline.wire.tensor import Tensor
from stages.messages import MediaSpan

FIRST_CACHE_ID = 2**62


def media_cache_ids(ids: torch.Tensor, positions: Tensor | None, spans: Sequence[MediaSpan]) -> torch.Tensor:
    """`ids` (int64 [n]) with the rows of `spans` replaced by numbers in [2**62, 2**63).

    Args:
        positions: float32 [3, n] M-RoPE positions; None if they equal the indices.
    """
    replaced = ids.clone()
    for span in spans:
        rows = span.rows.numpy()
        if positions is None:
            where = numpy.broadcast_to(rows.astype(numpy.float32), (3, len(rows)))
        else:
            where = positions.numpy()[:, rows]
        stream = hashlib.shake_256(span.key + numpy.ascontiguousarray(where).tobytes()).digest(8 * len(rows))
        numbers = numpy.frombuffer(stream, dtype="<i8") & (FIRST_CACHE_ID - 1) | FIRST_CACHE_ID
        replaced[span.rows.torch()] = torch.from_numpy(numbers)
    return replaced
