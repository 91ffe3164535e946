"""Types to ask, before a stage is loaded, whether it can compute with a checkpoint on its devices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from msgspec import Struct


class Share(Struct, frozen=True):
    """A stage with its weights, on its devices.

    Attributes:
        config: The checkpoint's ``config.json``.
        tensors: Names of the checkpoint's tensors.
        device: ``cpu`` or ``cuda``.
        ranks: Processes that share its work.
        capability: The lowest CUDA compute capability of its GPUs; None if it is unknown.
    """

    config: Mapping[str, Any]
    tensors: Collection[str]
    device: str
    ranks: int = 1
    capability: tuple[int, int] | None = None


TellMisfit: TypeAlias = Callable[[Share], str | None]
"""Why a stage cannot compute with its weights, as the end of a sentence; None where it can."""
