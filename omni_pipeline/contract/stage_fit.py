"""Types for the check whether a stage can compute with a checkpoint on its devices. The check is made before the stage
is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from msgspec import Struct


class Share(Struct, frozen=True):
    """The weights and the devices of one stage.

    Attributes:
        config: The checkpoint's ``config.json``.
        tensors: Names of the checkpoint's tensors.
        device: ``cpu`` or ``cuda``.
        ranks: Number of processes that share the stage's work.
        capability: The lowest CUDA compute capability among the stage's GPUs; None if unknown.
    """

    config: Mapping[str, Any]
    tensors: Collection[str]
    device: str
    ranks: int = 1
    capability: tuple[int, int] | None = None


TellMisfit: TypeAlias = Callable[[Share], str | None]
"""Returns the reason why a stage cannot compute with its weights, as the end of a sentence; None if the stage can
compute.
"""
