"""What streaming layers keep of each voice between two chunks: rows of preallocated tensors, one for each slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Streams(NamedTuple):
    """The voices of one batch, all of them in their first chunk or none.

    Attributes:
        slots: Where each voice's state is kept.
        places: The same as int64 [batch].
        done: int64 [batch], frames decoded before this chunk.
        fresh: Whether this is their first chunk. What their slots hold is then left over from other voices, and is
            overwritten without being read.
    """

    slots: Sequence[int]
    places: Tensor
    done: Tensor
    fresh: bool

    @classmethod
    def of(cls, slots: Sequence[int], done: Sequence[int], device: torch.device) -> Streams:
        """For voices that have so many frames `done`, all or none of them 0."""
        return cls(slots, torch.tensor(slots, device=device), torch.tensor(done, device=device), not done[0])

    def read(self, kept: Tensor) -> Tensor:
        """Their rows of kept [slots, …]: [batch, …]; of a single voice a view, since picking takes much longer."""
        return kept[self.slots[0] :][:1] if len(self.slots) == 1 else kept.index_select(0, self.places)

    def write(self, kept: Tensor, rows: Tensor) -> None:
        """Keep rows [batch, …] in kept [slots, …]."""
        if len(self.slots) == 1:
            kept[self.slots[0]].copy_(rows[0])
        else:
            kept.index_copy_(0, self.places, rows)


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
            x = torch.cat((streams.read(self._kept), x), -1)
        elif self._silence:
            x = functional.pad(x, (self._length, 0))
        streams.write(self._kept, x[..., -self._length :])
        return x
