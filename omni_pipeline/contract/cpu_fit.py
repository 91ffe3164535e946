"""Types for the choice of how a stage computes on a CPU. The choice is made before the stage is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from msgspec import Struct

from omni_pipeline.cpu_detection import Cpu


class OnCpu(Struct, frozen=True):
    """A stage that computes on a CPU.

    Attributes:
        stage: Name of the stage.
        config: The checkpoint's ``config.json``.
        stages: Names of all stages that are served on the same host. A stage with replicas is listed once for each
            replica.
        cpu: The cores and instructions of the CPU that the whole server may use on this host.
    """

    stage: str
    config: Mapping[str, Any]
    stages: Collection[str]
    cpu: Cpu


class CpuChoice(Struct, frozen=True):
    """How a stage computes on a CPU.

    Attributes:
        threads: Number of Torch threads.
        dtype: Data type of weights and activations; None means float32.
        niceness: See ``nice(2)``. While more processes compute than there are cores, those with a higher niceness get
            less time.
    """

    threads: int = 1
    dtype: str | None = None
    niceness: int = 0


TellCpuChoice: TypeAlias = Callable[[OnCpu], CpuChoice]
"""Chooses how a stage computes on a CPU. A setting that the operator has chosen takes precedence."""
