"""Contains the base class of both media encoders. The base class batches the media items of all waiting requests, and
computes each item once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from msgspec import Struct, field

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.messages import Start, Work
from stages.encoders.embedding_cache import EmbeddingCache, Embeddings
from stages.messages import AudioItem, VisionItem

Item = TypeVar("Item", VisionItem, AudioItem)


class PendingItem(Struct, Generic[Item]):
    """A request that waits for embeddings.

    Attributes:
        items: The media items of the request, in order.
        pad_frames: See `AudioWork.pad_frames`; 0 for pictures and clips.
        found: The embeddings that are known already, by key.
    """

    items: list[Item]
    pad_frames: int
    found: dict[bytes, Embeddings] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return all(item.key in self.found for item in self.items)


class PartlyEncoded(Struct, Generic[Item]):
    """An item that is larger than a batch. Each step computes one of its pieces.

    Attributes:
        pieces: The pieces that have not been computed.
        done: The embeddings of the other pieces, in order.
    """

    pieces: deque[Item]
    done: list[Embeddings] = []


class MediaEncoder(ABC, Generic[Item]):
    """A stage that turns media into embedding rows. Each subclass adds a model.

    Args:
        context: The stage's context; its options are `EncoderOptions`.
        target: The stage that gets the rows.
    """

    def __init__(self, context: StageContext, target: str = "mm_aggregate") -> None:
        self.name = context.name
        self._target = target
        self._max_batch_rows: int = context.options.max_batch_tokens
        self._cache = EmbeddingCache(context.options.cache_bytes)
        self._waiting: dict[str, PendingItem[Item]] = {}
        self._partly: dict[bytes, PartlyEncoded[Item]] = {}
        self._encoded_items = 0
        self._encoded_rows = 0
        self.batch: list[str] = []

    @abstractmethod
    def pending(self, body: Any) -> PendingItem[Item]:
        """The pending request that a message's body describes."""

    @abstractmethod
    def row_count(self, item: Item) -> int:
        """Number of embedding rows that `item` makes."""

    @abstractmethod
    def pieces(self, item: Item) -> Iterable[Item]:
        """Cuts `item` into pieces. Each piece fits a batch, if possible. The model's attention does not cross the
        borders between pieces.
        """

    @abstractmethod
    def encode(self, items: Sequence[Item], pad_frames: int) -> Iterable[Embeddings]:
        """Run the model over `items` at once. Returns one result per item, in order; each result owns its memory."""

    @abstractmethod
    def answer(self, results: Sequence[Embeddings]) -> Any:
        """The body that carries the results of one request, in the order of its items."""

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def receive(self, message: Work) -> None:
        request = self.pending(message.body)
        self._waiting[message.request_id] = request
        for item in request.items:
            known = request.found.get(item.key) or self._cache.get(item.key)
            if known is not None:
                request.found[item.key] = known

    def step(self) -> Iterator[Work]:
        """Encode one batch, and answer every request whose items are all encoded. Requests take turns: a request that
        needs further batches goes behind the others.
        """
        batch, pad_frames = self._next_batch()
        self.batch = self._wanting({item.key for item in batch})
        for item, result in self._encoded(batch, pad_frames):
            self._cache.put(item.key, result)
            self._hand_out(item.key, result)
            self._encoded_items += 1
            self._encoded_rows += self.row_count(item)
        for request_id in self.batch:
            self._waiting[request_id] = self._waiting.pop(request_id)
        for request_id in [id_ for id_, request in self._waiting.items() if request.complete]:
            request = self._waiting.pop(request_id)
            results = [request.found[item.key] for item in request.items]
            yield Start(request_id, self.name, self._target, self.answer(results))

    def abort(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)
        self._partly = {key: item for key, item in self._partly.items() if self._wanting({key})}

    def live(self) -> Collection[str]:
        return self._waiting.keys()

    def stats(self) -> dict[str, float]:
        return {
            "queued_requests": len(self._waiting),
            "cache_hits": self._cache.hits,
            "cache_misses": self._cache.misses,
            "cache_bytes": self._cache.nbytes,
            "encoded_items": self._encoded_items,
            "encoded_rows": self._encoded_rows,
        }

    def close(self) -> None:
        """Do nothing: the stage holds nothing that outlives its process."""

    def _next_batch(self) -> tuple[list[Item], int]:
        """Distinct items to encode together (at least one, up to the row limit), and the padded length of their chunks.

        If the padding of an item differs from the padding of the first item, the item waits for another batch.
        """
        batch: dict[bytes, Item] = {}
        pad_frames = rows = 0
        for request in self._waiting.values():
            if batch and request.pad_frames != pad_frames:
                continue
            for item in request.items:
                if item.key in request.found or item.key in batch:
                    continue
                rows += self.row_count(item)
                if batch and rows > self._max_batch_rows:
                    return list(batch.values()), pad_frames
                batch[item.key] = item
                pad_frames = request.pad_frames
        return list(batch.values()), pad_frames

    def _encoded(self, batch: Sequence[Item], pad_frames: int) -> Iterator[tuple[Item, Embeddings]]:
        """The items of a batch whose embeddings are now complete, with the embeddings.

        Of an item that is larger than a batch, only the next piece is computed, to bound the memory and the time.
        """
        if sum(map(self.row_count, batch)) <= self._max_batch_rows:
            if batch:
                yield from zip(batch, self.encode(batch, pad_frames), strict=True)
            return
        (item,) = batch
        partly = self._partly.pop(item.key, None) or PartlyEncoded(deque(self.pieces(item)))
        partly.done += self.encode([partly.pieces.popleft()], pad_frames)
        if partly.pieces:
            self._partly[item.key] = partly
        else:
            yield item, _joined(partly.done)

    def _wanting(self, keys: Collection[bytes]) -> list[str]:
        """Ids of the requests that wait for an item with one of these keys."""
        return [id_ for id_, wanted in self._waiting.items() if any(item.key in keys for item in wanted.items)]

    def _hand_out(self, key: bytes, result: Embeddings) -> None:
        for request in self._waiting.values():
            if any(item.key == key for item in request.items):
                request.found[key] = result


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    if len(parts) == 1:
        return parts[0]
    deepstack = [part.deepstack for part in parts if part.deepstack is not None]
    return Embeddings(torch.cat([part.rows for part in parts]), torch.cat(deepstack, 1) if deepstack else None)
