"""What streaming layers keep of each voice between two chunks: rows of preallocated tensors, one for each slot."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Streams(NamedTuple):
    """The voices of one batch, all of them in their first chunk or none.

    Attributes:
        slots: int64 [batch], where each voice's state is kept.
        done: int64 [batch], frames decoded before this chunk.
        fresh: Whether this is their first chunk. What their slots hold is then left over from other voices, and is
            overwritten without being read.
    """

    slots: Tensor
    done: Tensor
    fresh: bool


class History:
    """The last `length` steps of a layer's input, for every slot.

    Args:
        kept: [slots, channels, length], the memory to use.
        silence: Whether a voice is preceded by zeros, as a causal convolution sees it, or by nothing at all.
    """

    def __init__(self, kept: Tensor, *, silence: bool) -> None:
        self._kept = kept
        self._length = kept.shape[-1]
        self._silence = silence

    def extend(self, x: Tensor, streams: Streams) -> Tensor:
        """Put what came before in front of x [batch, channels, steps], and keep the end for the next chunk."""
        if not streams.fresh:
            x = torch.cat((self._kept.index_select(0, streams.slots), x), -1)
        elif self._silence:
            x = functional.pad(x, (self._length, 0))
        self._kept.index_copy_(0, streams.slots, x[..., -self._length :])
        return x
