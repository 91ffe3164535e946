"""The plan of one worker process and its stages, after all decisions. `deployment` makes it, `supervision` runs it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

Device: TypeAlias = Literal["cpu", "cuda"]


class StagePlan(Struct, frozen=True):
    """One stage of a worker.

    Attributes:
        options: The stage's own options, a `StageOptions`. Still a mapping when a worker has just received it.
        gpus: Indices of its GPUs; empty on the CPU.
        tp_size: Processes that share its work, by tensor parallelism.
        memory: Total bytes that it may take on each of its GPUs; None until that is decided.
        static: The part of `memory` for weights and KV cache, in a stage that fills its memory; None until that is
            decided.
    """

    name: str
    device: Device
    options: Any
    gpus: tuple[int, ...] = ()
    tp_size: int = 1
    memory: int | None = None
    static: int | None = None


class WorkerPlan(Struct, frozen=True):
    """One worker process.

    Attributes:
        stages: In graph order.
        threads: Torch threads that they share.
        gpus: The GPUs that it sees, as entries of ``CUDA_VISIBLE_DEVICES``; empty for none.
        environment: Variables to set before it imports anything.
        after: Names of the workers that have to be ready before it is started.
    """

    name: str
    stages: tuple[StagePlan, ...]
    threads: int
    gpus: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    after: tuple[str, ...] = ()

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)

    @property
    def fresh(self) -> bool:
        """Whether it has to start in a fresh interpreter, because imports depend on its GPUs or its environment."""
        return bool(self.gpus or self.environment)
