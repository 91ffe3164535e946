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
        options: The stage's own options, a `StageOptions`. In an `Assignment` that a worker has received and not
            converted yet, the options are a mapping.
        gpus: Indices of the stage's GPUs among the GPUs of all hosts (`gpus.Gpu.index`); empty on the CPU.
        tp_size: Number of processes that share the stage's work by tensor parallelism.
        memory: Total bytes that the stage may use on each of its GPUs; None before the size is decided.
        static: The part of `memory` for weights and KV cache; None for a stage without a cache, and before the size is
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
        stages: The worker's stages in graph order.
        threads: Number of Torch threads that the stages share; None before the number is decided.
        niceness: Niceness of the worker's main thread; None before it is decided.
        gpus: The GPUs that the worker sees, as entries of ``CUDA_VISIBLE_DEVICES`` on its host; empty if it sees no
            GPU.
        environment: Environment variables to set before the worker imports anything.
        after: Names of the workers that have to be ready before this worker is started.
        group: Name of the replicated group of stages to which the worker's stages belong; empty if they are in no
            group.
        replica: Number of the group's replica, counted from 0. The name of a worker in a group ends in ``@`` and this
            number.
        spare: Whether the worker is started only when an operator adds its replica. All other workers are started with
            the server.
        host: Name of the host on which the worker runs; empty for the host of the main process.
    """

    name: str
    stages: tuple[StagePlan, ...]
    threads: int | None = None
    niceness: int | None = None
    gpus: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    after: tuple[str, ...] = ()
    group: str = ""
    replica: int = 0
    spare: bool = False
    host: str = ""

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)

    @property
    def base_name(self) -> str:
        """The name that the configuration gives the worker. All replicas of the worker share it."""
        return self.name.removesuffix(f"@{self.replica}") if self.group else self.name

    @property
    def fresh(self) -> bool:
        """Whether the worker has to start in a fresh interpreter, because the imports of modules depend on the worker's
        GPUs and environment.
        """
        return bool(self.gpus or self.environment)
