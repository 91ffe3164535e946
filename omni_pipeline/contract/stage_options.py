"""Base types of the stages' own options. They contain the options that the framework also reads.

A model's option structs extend these types, so that no framework code looks up an option by its name.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class StageOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a stage. A subclass that offers one of the options below declares that option as a field."""

    @property
    def dtype(self) -> str | None:
        """Data type of weights and activations. None means the default: float32 on a CPU, the checkpoint's data type on
        a GPU.
        """
        return None

    @property
    def max_total_tokens(self) -> int | None:
        """Size of the stage's cache in tokens; None if the stage has no cache, or if the server decides the size."""
        return None

    @property
    def mem_fraction_static(self) -> float | None:
        """Memory for weights and cache, as a fraction of each whole GPU; None if the server decides the fraction."""
        return None


class CacheOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a stage whose cache fills all the memory that the stage is given.

    Attributes:
        max_total_tokens: Size of the KV cache in tokens; with null, the cache gets a share of the GPU memory that
            remains after all other needs, as `sgl-omni plan` shows (on a CPU: 65536 tokens).
        mem_fraction_static: Memory for weights and KV cache together, as a fraction of each whole GPU; null uses
            the stage's memory budget or, without a budget, lets the server decide.
    """

    max_total_tokens: Annotated[int, Meta(ge=1)] | None = None
    mem_fraction_static: Annotated[float, Meta(gt=0, lt=1)] | None = None
