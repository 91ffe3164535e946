"""Base types of the stages' own options. The base types contain those options that the framework reads too.

A model's option structs extend these types, so that no framework code looks up an option by its name.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class StageOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a stage. A subclass that offers one of the options below declares that option as a field."""

    @property
    def dtype(self) -> str | None:
        """Data type of weights and activations. None means the default. On a GPU, the default is the checkpoint's data
        type. On a CPU, the default is the data type that the graph chooses, or float32 if the graph chooses no type.
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
    """Options of a stage whose cache fills the stage's whole memory budget.

    Attributes:
        max_total_tokens: Size of the KV cache in tokens. null means 65536 tokens on a CPU. On a GPU, null means that
            the size follows from the memory settings of the stage or, if the stage has no memory settings, from the
            memory that is left on the GPU. `sgl-omni plan` shows the size.
        mem_fraction_static: Memory for weights and KV cache together, as a fraction of each whole GPU. null means that
            the stage's setting `memory` limits this memory. If `memory` is null too, the server decides.
    """

    max_total_tokens: Annotated[int, Meta(ge=1)] | None = None
    mem_fraction_static: Annotated[float, Meta(gt=0, lt=1)] | None = None
