"""Caches the embeddings of media items within a limit of bytes; the least recently used items are dropped first."""

from __future__ import annotations

from collections import OrderedDict

import torch
from msgspec import Struct


class Embeddings(Struct, frozen=True):
    """An encoder's result for one media item, as float32 on the CPU.

    Attributes:
        rows: [rows, h], as they enter the prompt.
        deepstack: For a picture or clip: [injection layers, rows, h]. None for a sound.
    """

    rows: torch.Tensor
    deepstack: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + (0 if self.deepstack is None else self.deepstack.nbytes)


class EmbeddingCache:
    """A cache of embeddings by content key.

    The cache returns its own tensors, not copies, so do not write to the returned tensors. A tensor that is put into
    the cache must own its memory, because a view into a batch would keep the memory of the whole batch.

    Args:
        limit: Maximum bytes of embeddings to keep; 0 turns the cache off.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[bytes, Embeddings] = OrderedDict()

    def get(self, key: bytes) -> Embeddings | None:
        """The embeddings of `key`, or None if they are not cached. Counts a hit or a miss."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: Embeddings) -> None:
        """Store `entry`. If the cache then exceeds its limit, drop the least recently used entries. An entry that is
        larger than the limit is not stored.
        """
        if key in self._entries or entry.nbytes > self.limit:
            return
        self._entries[key] = entry
        self.nbytes += entry.nbytes
        while self.nbytes > self.limit:
            self.nbytes -= self._entries.popitem(last=False)[1].nbytes

    def __len__(self) -> int:
        return len(self._entries)
