"""The memory that a stage needs besides its weights. A `contract.graph.StageSpec` has the function that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from msgspec import Struct


class Request(Struct, frozen=True):
    """An example request: a plan counts how many such requests fit into memory at the same time.

    Attributes:
        prompt_tokens: Tokens of all its text and media.
        answer_tokens: Tokens of the generated text.
    """

    prompt_tokens: int = 2048
    answer_tokens: int = 512


class Situation(Struct, frozen=True):
    """What a stage's needs depend on.

    Attributes:
        config: The checkpoint's ``config.json``.
        options: The stage's own options, a `stage_options.StageOptions`.
        device: ``cpu`` or ``cuda``.
        item_size: Bytes of one number in the data type that it computes in.
        ranks: Processes that share its work.
        device_memory: Bytes of the smallest of its devices.
        stages: Names of all stages that the deployment runs.
        request: The example request to count with.
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
    """Memory that grows with the tokens a stage can hold.

    Attributes:
        token_bytes: Bytes on each device for a token's keys and values.
        beside_bytes: Bytes on each device for everything else that is kept for a token.
        request_tokens: Tokens that the example request takes in this cache.
        most_tokens: The most tokens that it can use; None if it keeps tokens of earlier requests for later ones.
        default_tokens: Its tokens if no plan decides, as on a CPU; None if it then takes all free memory.
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
    """Bytes that a stage takes on each of its devices, besides its weights.

    Attributes:
        activations: At the peak of a step. Stages of one worker take turns, so these count once for all of them.
        state: Memory held all the time: tables, slots for streams, workspaces.
        graphs: For CUDA graphs.
        requests: The most requests that it works on at the same time; None for no limit.
        cache: Its cache, if it has one.
    """

    activations: int = 0
    state: int = 0
    graphs: int = 0
    requests: int | None = None
    cache: Cache | None = None


TellNeeds: TypeAlias = Callable[[Situation], Needs]
