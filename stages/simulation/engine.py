"""The continuous batch of a simulated language model."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from msgspec import Struct

PREFILL_TOKENS = 8192
"""SGLang computes at most this number of prompt tokens in one step. It cuts longer prompts into several steps."""


class Generation(Struct):
    """A request of an engine.

    Attributes:
        prompt: Number of prompt tokens that are not computed yet.
        left: Number of tokens to generate.
    """

    prompt: int
    left: int


class EngineStep(Struct, frozen=True):
    """A step of an engine.

    Attributes:
        ids: The requests of the batch.
        tokens: Number of prompt tokens that are computed.
        prefilled: The requests of the batch whose prompt is now complete. Each of them gets its first token.
    """

    ids: tuple[str, ...] = ()
    tokens: int = 0
    prefilled: tuple[str, ...] = ()


class SimulatedEngine:
    """The waiting requests and the generating requests of an engine. A step computes either the prompts of waiting
    requests, or one token for each of several generating requests.

    Args:
        max_running: Maximum number of requests that generate at the same time.
        max_tokens: Size of the KV cache in tokens; None for no limit. A request starts when there is room for its
            prompt and its whole answer. (SGLang starts it earlier. If the cache is full, SGLang frees the memory of a
            running request, which must then wait again.)
        prefill_requests: Maximum number of prompts in one step; None for no limit.
    """

    def __init__(self, max_running: int, max_tokens: int | None, prefill_requests: int | None = None) -> None:
        self._max_running = max_running
        self._max_tokens = max_tokens
        self._prefill_requests = prefill_requests
        self._waiting: dict[str, Generation] = {}
        self._running: dict[str, Generation] = {}
        self._sizes: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Number of requests whose prompt is not complete."""
        return len(self._waiting)

    @property
    def running(self) -> Collection[str]:
        """The requests that generate."""
        return self._running.keys()

    @property
    def can_prefill(self) -> bool:
        """Whether a waiting request can start now."""
        first = next(iter(self._waiting), None)
        return first is not None and self._fits(first)

    def add(self, request_id: str, prompt: int, answer: int) -> None:
        self._waiting[request_id] = Generation(prompt, answer)
        self._sizes[request_id] = prompt + answer

    def prefill(self) -> EngineStep:
        """The next step, for the prompts of waiting requests."""
        room, tokens = PREFILL_TOKENS, 0
        prefilled: list[str] = []
        ids: list[str] = []
        for request_id, generation in list(self._waiting.items()):
            if not room or not self._fits(request_id) or len(ids) == (self._prefill_requests or len(self._waiting) + 1):
                break
            part = min(generation.prompt, room)
            generation.prompt -= part
            room -= part
            tokens += part
            ids.append(request_id)
            if generation.prompt:
                break
            prefilled.append(request_id)
            self._running[request_id] = self._waiting.pop(request_id)
        return EngineStep(tuple(ids), tokens, tuple(prefilled))

    def decode(self, ids: Iterable[str]) -> EngineStep:
        """The next step, for those requests of `ids` that generate."""
        return EngineStep(tuple(request_id for request_id in ids if request_id in self._running))

    def generate(self, request_id: str) -> bool:
        """Count a token of a request. Returns whether it was the last token. If so, the request leaves the engine."""
        generation = self._running[request_id]
        generation.left -= 1
        if generation.left > 0:
            return False
        del self._running[request_id]
        del self._sizes[request_id]
        return True

    def _fits(self, request_id: str) -> bool:
        if len(self._running) >= self._max_running:
            return False
        used = sum(self._sizes[other] for other in self._running)
        alone = not self._running
        return alone or self._max_tokens is None or used + self._sizes[request_id] <= self._max_tokens


def engine_of(options: Any, *, on_gpu: bool, single_prompts: bool) -> SimulatedEngine:
    """The engine of a stage.

    Args:
        options: The stage's `max_running_requests`, `max_total_tokens` and `engine`.
        single_prompts: Whether a step on a CPU computes only one prompt.
    """
    default = 1 if single_prompts and not on_gpu else None
    return SimulatedEngine(
        options.max_running_requests,
        options.max_total_tokens,
        options.engine.get("prefill_max_requests", default),
    )
