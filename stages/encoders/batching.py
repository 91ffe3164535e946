"""The base class of both media encoders. It batches the media items of all waiting requests, and computes each item
once.
"""

from __future__ import annotations

import math
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
from stages.queue_order import TurnOrder

Item = TypeVar("Item", VisionItem, AudioItem)


class PendingItem(Struct, Generic[Item]):
    """A request that waits for embeddings.

    Attributes:
        items: The media items of the request, in order.
        pad_frames: See `AudioWork.pad_frames`; 0 for pictures and clips.
        sender: Number of the client, see `messages.Sampling.sender`.
        found: The embeddings that have been computed already. The embeddings of an item are stored under `item.key`.
    """

    items: list[Item]
    pad_frames: int
    sender: int = 0
    found: dict[bytes, Embeddings] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return all(item.key in self.found for item in self.items)


class PartlyEncoded(Struct, Generic[Item]):
    """A media item that is larger than a batch, and is encoded piece by piece. Each step computes one piece.

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
        self._max_batch: float = context.options.max_batch or (1 if context.device == "cpu" else math.inf)
        self._cache = EmbeddingCache(context.options.cache_bytes)
        self._waiting: dict[str, PendingItem[Item]] = {}
        self._partly: dict[bytes, PartlyEncoded[Item]] = {}
        self._turns = TurnOrder()
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
        """Cuts `item` into pieces. Each piece fits into a batch, if possible. Items are cut only at points that the
        model's attention does not cross, so the results do not change.
        """

    @abstractmethod
    def encode(self, items: Sequence[Item], pad_frames: int) -> Iterable[Embeddings]:
        """Run the model over `items` at once. Returns one result per item, in order; each result owns its memory."""

    @abstractmethod
    def answer(self, results: Sequence[Embeddings]) -> Any:
        """The body that carries the results of one request, in the order of its items."""

    @property
    def patient(self) -> bool:
        """Always true: a batch may wait while another stage has urgent work. A batch takes so long that a client does
        not notice a later start.
        """
        return True

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
        """Encode one batch, and answer every request whose items are all encoded. A request that needs further batches
        goes to the end of its client's queue. Clients take turns.
        """
        batch, pad_frames = self._next_batch()
        self.batch = self._wanting({item.key for item in batch})
        for item, result in self._encoded(batch, pad_frames):
            self._cache.put(item.key, result)
            self._hand_out(item.key, result)
            self._encoded_items += 1
            self._encoded_rows += self.row_count(item)
        for request_id in self.batch:
            request = self._waiting[request_id] = self._waiting.pop(request_id)
            self._turns.serve(request.sender)
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
        """Do nothing: the stage has no resources that outlive its process."""

    def _next_batch(self) -> tuple[list[Item], int]:
        """Distinct items to encode together, and the padded length of their chunks. There is at least one item. Further
        items are added up to the row limit, in the order of the clients' turns. So if one client sends many or large
        media, another client waits only one batch longer. The items belong to at most `max_batch` requests.

        All items of a batch have the same padded length. Items with another padded length wait for another batch.
        """
        batch: dict[bytes, Item] = {}
        pad_frames = rows = requests = 0
        waiting = list(self._waiting.values())
        for index in self._turns.order([request.sender for request in waiting]):
            request = waiting[index]
            if batch and request.pad_frames != pad_frames:
                continue
            before = len(batch)
            for item in request.items:
                if item.key in request.found or item.key in batch:
                    continue
                rows += self.row_count(item)
                if batch and rows > self._max_batch_rows:
                    return list(batch.values()), pad_frames
                batch[item.key] = item
                pad_frames = request.pad_frames
            requests += len(batch) > before
            if requests == self._max_batch:
                break
        return list(batch.values()), pad_frames

    def _encoded(self, batch: Sequence[Item], pad_frames: int) -> Iterator[tuple[Item, Embeddings]]:
        """Encode a batch. Yields the items whose embeddings are now complete, each with its embeddings.

        If an item is larger than a batch, only its next piece is computed. This bounds the memory and the time of a
        step.
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
