"""What a stage's own options have in common: the options that the framework reads too.

A model's option structs extend the ones here, so that no framework code looks up an option by its name.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class StageOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a stage; a stage that has one of the options named here declares it as a field."""

    @property
    def dtype(self) -> str | None:
        """Data type of weights and activations; None for the default: float32 on a CPU, the checkpoint's on a GPU."""
        return None

    @property
    def max_total_tokens(self) -> int | None:
        """Tokens that fit the stage's cache; None if it has none, or leaves them to the server."""
        return None

    @property
    def mem_fraction_static(self) -> float | None:
        """Weights and cache together, as a fraction of each whole GPU; None leaves it to the server."""
        return None


class CacheOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a stage that fills the memory it is given with a cache.

    Attributes:
        max_total_tokens: Size of the KV cache in tokens; null gives it its share of the GPU memory that everything else
            leaves, as `sgl-omni plan` shows (on a CPU: 65536 tokens).
        mem_fraction_static: Memory for weights and KV cache together, as a fraction of each whole GPU; null leaves it
            to the stage's memory budget, or to the server.
    """

    max_total_tokens: Annotated[int, Meta(ge=1)] | None = None
    mem_fraction_static: Annotated[float, Meta(gt=0, lt=1)] | None = None
