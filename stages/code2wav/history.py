"""Stores the state of streaming layers between two chunks of an utterance. The memory is allocated once, with one row
for each slot. A slot stores the state of one utterance at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Streams(NamedTuple):
    """The utterances of one batch. The batch contains the first chunk of each utterance, or a later chunk of each.

    Attributes:
        slots: The slot that keeps each utterance's state.
        places: `slots` as int64 [batch].
        done: int64 [batch], the number of frames that were decoded before this chunk.
        fresh: Whether this is the first chunk of the utterances. If so, their slots still contain the state of earlier
            utterances. This old state is overwritten and not read.
    """

    slots: Sequence[int]
    places: Tensor
    done: Tensor
    fresh: bool

    @classmethod
    def of(cls, slots: Sequence[int], done: Sequence[int], device: torch.device) -> Streams:
        """The streams of a batch of utterances. `done` has the number of decoded frames of each utterance: all of these
        numbers are 0, or all are greater than 0.
        """
        return cls(slots, torch.tensor(slots, device=device), torch.tensor(done, device=device), not done[0])

    def read(self, kept: Tensor) -> Tensor:
        """The rows [batch, …] of the batch's utterances in `kept` [slots, …]. For a batch of one utterance, the result
        is a view into `kept`, because indexing would take much longer.
        """
        return kept[self.slots[0] :][:1] if len(self.slots) == 1 else kept.index_select(0, self.places)

    def write(self, kept: Tensor, rows: Tensor) -> None:
        """Store the batch's rows [batch, …] in kept [slots, …]."""
        if len(self.slots) == 1:
            kept[self.slots[0]].copy_(rows[0])
        else:
            kept.index_copy_(0, self.places, rows)


class History:
    """The most recent steps of a layer's input, for every slot.

    Args:
        kept: [slots, channels, length], the memory to use.
        silence: Whether the layer needs zeros before the first step of an utterance, as a causal convolution does.
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
