"""Types for the memory that a stage needs in addition to its weights. `contract.graph.StageSpec.needs` computes this
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from msgspec import Struct


class Request(Struct, frozen=True):
    """An example request. A plan counts how many requests of this size fit into memory at the same time.

    Attributes:
        prompt_tokens: Number of tokens of all text and media in the request.
        answer_tokens: Number of tokens of the generated text.
    """

    prompt_tokens: int = 2048
    answer_tokens: int = 512


class Situation(Struct, frozen=True):
    """The facts that determine how much memory a stage needs.

    Attributes:
        config: The checkpoint's ``config.json``.
        options: The stage's own options, a `stage_options.StageOptions`.
        device: ``cpu`` or ``cuda``.
        item_size: Bytes of one number in the data type in which the stage computes.
        ranks: Number of processes that share the stage's work.
        device_memory: Total bytes of the smallest of the stage's GPUs; 0 on the CPU.
        stages: Names of all stages that the deployment runs.
        request: The example request whose size the computation uses.
    """

    config: Mapping[str, Any]
    options: Any
    device: str
    item_size: int
    ranks: int
    device_memory: int
    stages: frozenset[str]
    request: Request


class Cache(Struct, frozen=True):
    """Memory of a stage for the keys, values and other data of tokens.

    Attributes:
        token_bytes: Bytes on each device for a token's keys and values.
        beside_bytes: Bytes on each device for all other data of a token.
        request_tokens: Number of tokens that the example request needs in this cache.
        most_tokens: Maximum number of tokens that the cache can use. None means that there is no maximum, because the
            cache keeps tokens of earlier requests for later requests.
        default_tokens: Number of tokens of the cache on a CPU if the operator sets no size. None means the number of
            tokens that one example request needs.
    """

    token_bytes: int
    beside_bytes: int
    request_tokens: int
    most_tokens: int | None = None
    default_tokens: int | None = None

    @property
    def bytes_per_token(self) -> int:
        return self.token_bytes + self.beside_bytes


class Needs(Struct, frozen=True):
    """Bytes that a stage needs on each of its devices, in addition to its weights.

    Attributes:
        activations: Bytes at the peak of a step. The stages of one worker compute one after the other, so only the
            largest value in a worker counts.
        state: Bytes that are in use all the time: tables, slots for streams, workspaces.
        graphs: Bytes for CUDA graphs.
        requests: Maximum number of requests on which the stage works at the same time; None for no limit.
        cache: The stage's cache; None if it has no cache.
    """

    activations: int = 0
    state: int = 0
    graphs: int = 0
    requests: int | None = None
    cache: Cache | None = None


TellNeeds: TypeAlias = Callable[[Situation], Needs]
