"""The simulated stages before the thinker, and the simulated stage `decode`."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.simulation import (
    MESSAGE_BYTES,
    Batch,
    Output,
    SimulatedMessage,
    SimulatedRequest,
    StageSite,
)
from stages.simulation.speech_messages import TextEnd, TextTokens

PATCH_BYTES = 24 * 32 * 32
"""Bytes of the patches of one media token: 24 bytes for each pixel."""

ROW_BYTES = 32 * 1024
"""Bytes of the embedding rows of one media token."""


class Passive:
    """Base class of the stages that are never urgent, and that get work only when a message arrives."""

    patient = False

    def urgent(self, now: float) -> bool:
        return False

    def wakes_at(self, now: float) -> float | None:
        return None


class OneByOne(Passive):
    """A stage that handles one request in each step, and passes it on to `_targets`.

    Args:
        site: Where the stage runs.
    """

    def __init__(self, site: StageSite) -> None:
        self.name = site.name
        self._queue: list[SimulatedRequest] = []

    def has_work(self, now: float) -> bool:
        return bool(self._queue)

    def computes(self, now: float) -> bool:
        return True

    def receive(self, message: SimulatedMessage, now: float) -> None:
        self._queue.append(message.body)

    def begin(self, now: float) -> Batch:
        return Batch(1, self._tokens(self._queue[0]))

    def finish(self, now: float) -> Sequence[SimulatedMessage]:
        request = self._queue.pop(0)
        return [
            SimulatedMessage(request.id, self.name, target, request, MESSAGE_BYTES + size)
            for target, size in self._targets(request).items()
        ]

    def _tokens(self, request: SimulatedRequest) -> int:
        return request.prompt_tokens

    def _targets(self, request: SimulatedRequest) -> dict[str, int]:
        """The next stages, each with the number of bytes that it receives."""
        raise NotImplementedError


class Preprocessing(OneByOne):
    """Tokenises a prompt. In the stage's `StepLaw`, the time for each prompt token includes the time to decode
    media.
    """

    def _targets(self, request: SimulatedRequest) -> dict[str, int]:
        pictures = {"image_encoder": PATCH_BYTES * request.media_tokens} if request.media_tokens else {}
        return {**pictures, "mm_aggregate": 16 * request.prompt_tokens}


class Encoder(OneByOne):
    """Encodes the media of one request. In the stage's `StepLaw`, `token` is the time of one media token."""

    def _tokens(self, request: SimulatedRequest) -> int:
        return request.media_tokens

    def _targets(self, request: SimulatedRequest) -> dict[str, int]:
        return {"mm_aggregate": ROW_BYTES * request.media_tokens}


class Aggregate(OneByOne):
    """Passes a request on when all its parts have arrived."""

    def __init__(self, site: StageSite) -> None:
        super().__init__(site)
        self._parts: dict[str, int] = {}

    def receive(self, message: SimulatedMessage, now: float) -> None:
        request: SimulatedRequest = message.body
        arrived = self._parts.pop(request.id, 0) + 1
        if arrived < 1 + bool(request.media_tokens):
            self._parts[request.id] = arrived
        else:
            self._queue.append(request)

    def _targets(self, request: SimulatedRequest) -> dict[str, int]:
        return {"thinker": 16 * request.prompt_tokens + ROW_BYTES * request.media_tokens}


class _Text(Struct):
    """New tokens of an answer's text."""

    tokens: int = 0
    ended: bool = False


class Decode(Passive):
    """Turns all tokens that have arrived, of all answers, into text in one step."""

    def __init__(self, site: StageSite) -> None:
        self.name = site.name
        self._texts: dict[str, _Text] = {}

    def has_work(self, now: float) -> bool:
        return bool(self._texts)

    def computes(self, now: float) -> bool:
        return True

    def receive(self, message: SimulatedMessage, now: float) -> None:
        text = self._texts.setdefault(message.request_id, _Text())
        if isinstance(message.body, TextTokens):
            text.tokens += message.body.tokens
        elif isinstance(message.body, TextEnd):
            text.ended = True

    def begin(self, now: float) -> Batch:
        return Batch(len(self._texts))

    def finish(self, now: float) -> Sequence[SimulatedMessage]:
        texts, self._texts = self._texts, {}
        return [
            SimulatedMessage(request_id, self.name, COLLECTOR, Output(tokens=text.tokens, last=text.ended))
            for request_id, text in texts.items()
        ]
