"""What a stage tells of its memory besides its weights. A `graph.StageSpec` names the function that tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from msgspec import Struct


class Request(Struct, frozen=True):
    """The request that a plan counts in: how many of its kind find room at the same time.

    Attributes:
        prompt_tokens: Of all its text and media.
        answer_tokens: Of the text that is generated.
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
        request: The request to count in.
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
        token_bytes: On each device, of keys and values.
        beside_bytes: On each device, of what else is kept for a token.
        request_tokens: Tokens of one request.
        most_tokens: Beyond so many it has no use for more; None where earlier requests' are kept for later ones.
        default_tokens: Tokens that it has where nobody decides, as on a CPU; None where it takes what is free.
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
    """Bytes that a stage takes of each of its devices, besides its weights.

    Attributes:
        activations: At the peak of a step. Stages of one worker take turns, so these count once for all of them.
        state: Held all the time: tables, slots for streams, workspaces.
        graphs: For CUDA graphs.
        requests: Most requests it works on at the same time; None for any number.
        cache: Of a stage that has one.
    """

    activations: int = 0
    state: int = 0
    graphs: int = 0
    requests: int | None = None
    cache: Cache | None = None


TellNeeds: TypeAlias = Callable[[Situation], Needs]
