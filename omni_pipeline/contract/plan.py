"""The plan of one worker process and its stages, after all decisions. `deployment` makes the plan, and `supervision`
runs the worker.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

Device: TypeAlias = Literal["cpu", "cuda"]


class StagePlan(Struct, frozen=True):
    """One stage of a worker.

    Attributes:
        options: The stage's own options, a `StageOptions`. In an assignment that a worker has just received, the
            options are still a mapping.
        gpus: Indices of the stage's GPUs; empty on the CPU.
        tp_size: Number of processes that share the stage's work by tensor parallelism.
        memory: Total bytes that the stage may use on each of its GPUs; None before this is decided.
        static: The part of `memory` for weights and KV cache, in a stage that fills its memory; None before
            this is decided.
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
        stages: The worker's stages in graph order.
        threads: Number of Torch threads that the stages share.
        gpus: The GPUs that the worker sees, as entries of ``CUDA_VISIBLE_DEVICES``; empty if it sees no GPU.
        environment: Environment variables to set before the worker imports anything.
        after: Names of the workers that have to be ready before this worker is started.
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
        """Whether the worker has to start in a fresh interpreter, because imports depend on the worker's GPUs and
        environment.
        """
        return bool(self.gpus or self.environment)
