"""Holds the state that streaming layers keep of each utterance between two chunks: preallocated tensors with one row
for each slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Streams(NamedTuple):
    """The utterances of one batch, either all of them in their first chunk, or all of them in a later chunk.

    Attributes:
        slots: The slot that keeps each utterance's state.
        places: `slots` as int64 [batch].
        done: int64 [batch], frames decoded before this chunk.
        fresh: Whether this is the utterances' first chunk. Their slots then hold the state of earlier utterances, which
            is overwritten and not read.
    """

    slots: Sequence[int]
    places: Tensor
    done: Tensor
    fresh: bool

    @classmethod
    def of(cls, slots: Sequence[int], done: Sequence[int], device: torch.device) -> Streams:
        """The streams of a batch of utterances. `done` is the number of decoded frames of each utterance; these numbers
        are all 0 or all positive.
        """
        return cls(slots, torch.tensor(slots, device=device), torch.tensor(done, device=device), not done[0])

    def read(self, kept: Tensor) -> Tensor:
        """The rows [batch, …] of the batch's utterances in `kept` [slots, …]. The row of a single utterance is a view,
        because indexing takes much longer.
        """
        return kept[self.slots[0] :][:1] if len(self.slots) == 1 else kept.index_select(0, self.places)

    def write(self, kept: Tensor, rows: Tensor) -> None:
        """Store the batch's rows [batch, …] in kept [slots, …]."""
        if len(self.slots) == 1:
            kept[self.slots[0]].copy_(rows[0])
        else:
            kept.index_copy_(0, self.places, rows)


class History:
    """The last `length` steps of a layer's input, for every slot.

    Args:
        kept: [slots, channels, length], the memory to use.
        silence: Whether zeros precede an utterance, as for a causal convolution; if not, nothing precedes the
            utterance.
    """

    def __init__(self, kept: Tensor, *, silence: bool) -> None:
        self._kept = kept
        self._length = kept.shape[-1]
        self._silence = silence

    def extend(self, x: Tensor, streams: Streams) -> Tensor:
        """Put the kept steps in front of x [batch, channels, steps], and keep the end of x for the next chunk."""
        if not streams.fresh:
            x = torch.cat((streams.read(self._kept), x), -1)
        elif self._silence:
            x = functional.pad(x, (self._length, 0))
        streams.write(self._kept, x[..., -self._length :])
        return x
