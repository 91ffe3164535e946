"""Groups stages into worker processes, and decides which GPUs each worker sees and which workers it waits for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from omni_pipeline.config.schema import StageConfig
from omni_pipeline.contract.graph import Graph
from omni_pipeline.contract.plan import StagePlan, WorkerPlan
from omni_pipeline.contract.stage_options import StageOptions
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu


class WorkerKey(NamedTuple):
    """Identifies a worker.

    Attributes:
        base: The name that the configuration gives the worker. All replicas of the worker share it.
        group, replica, spare, host: The same as in `WorkerPlan`.
    """

    base: str
    group: str
    replica: int
    spare: bool = False
    host: str = ""

    @property
    def name(self) -> str:
        """The name of the worker, which no other worker has."""
        return f"{self.base}@{self.replica}" if self.group else self.base


def grouped(
    groups: Mapping[WorkerKey, Sequence[StagePlan]],
    graph: Graph,
    settings: Mapping[str, StageConfig],
    gpus: Sequence[Gpu],
) -> tuple[WorkerPlan, ...]:
    """The workers of a deployment.

    Args:
        groups: The stages of each worker in graph order.
        settings: The settings of each stage in the configuration.
        gpus: The GPUs that the server may use.

    Raises:
        StartupError: stages cannot share a worker, or the sum of the memory budgets on a GPU is larger than the memory
            of the GPU.
    """
    _check_keys(groups)
    workers = [_worker(key, plans, graph, settings, gpus) for key, plans in groups.items()]
    _check_sums(workers, gpus)
    return _in_order(workers, graph)


def _check_keys(groups: Mapping[WorkerKey, Sequence[StagePlan]]) -> None:
    """Refuse a worker whose stages are not all in the same group, because all stages of a worker must have the same
    number of replicas.
    """
    first: dict[str, WorkerKey] = {}
    for key, plans in groups.items():
        other = first.setdefault(key.base, key)
        if other.group != key.group:
            some, rest = groups[other][0].name, plans[0].name
            raise StartupError(
                f"Worker {key.base} would run {some} ({_membership(other)}) and {rest} ({_membership(key)}), but all "
                "stages of one worker must have the same replicas. Put these stages in the same group, or in separate "
                "workers."
            )
    names = [key.name for key in groups]
    for name in names:
        if names.count(name) > 1:
            raise StartupError(f"Two workers would have the name {name}: choose another name in stages.….worker.")


def _membership(key: WorkerKey) -> str:
    return f"in the group {key.group}" if key.group else "in no group"


def _worker(
    key: WorkerKey, plans: Sequence[StagePlan], graph: Graph, settings: Mapping[str, StageConfig], gpus: Sequence[Gpu]
) -> WorkerPlan:
    name = key.base
    if name in graph.stage_names and name not in [plan.name for plan in plans]:
        raise StartupError(
            f"Worker {name} has the name of a stage that this worker does not run: choose another name for the worker."
        )
    accelerated = [plan for plan in plans if graph.stage(plan.name).accelerated]
    devices = {plan.device: plan.name for plan in accelerated}
    if len(devices) > 1:
        raise StartupError(
            f"Worker {name} would run {devices['cpu']} on the CPU and {devices['cuda']} on a GPU, "
            "but all stages of one worker that can use a GPU must have the same device."
        )
    first = accelerated[0] if accelerated else plans[0]
    for plan in accelerated:
        if plan.gpus != first.gpus:
            raise StartupError(
                f"Worker {name} would run {first.name} on GPU {_list(first.gpus, gpus)} and {plan.name} on GPU "
                f"{_list(plan.gpus, gpus)}, but all stages of one worker must use the same GPUs."
            )
        if plan.tp_size > 1 and len(accelerated) > 1:
            others = ", ".join(other.name for other in accelerated if other is not plan)
            raise StartupError(
                f"Worker {name} would run {plan.name} in {plan.tp_size} ranks beside {others}, but a stage with "
                "several ranks needs a worker without other stages that can use a GPU."
            )
    own = {plan.name: settings[plan.name] for plan in plans}
    return WorkerPlan(
        name=key.name,
        stages=tuple(plans),
        threads=max((stage.threads for stage in own.values() if stage.threads is not None), default=None),
        niceness=min((stage.niceness for stage in own.values() if stage.niceness is not None), default=None),
        gpus=tuple(gpus[index].device for index in first.gpus),
        environment=_environment(name, own),
        group=key.group,
        replica=key.replica,
        spare=key.spare,
        host=key.host,
    )


def _in_order(workers: Sequence[WorkerPlan], graph: Graph) -> tuple[WorkerPlan, ...]:
    """Returns `workers`. Each worker in the result has the names of the workers that have to be ready before it starts.

    A stage that fills its memory budget measures the free memory of its GPU before and after loading, and counts the
    difference as its own memory. If another worker loaded on the same GPU in between, the stage would also count the
    other worker's memory, and the stage's cache would be too small. So a worker with such a stage starts after all
    other workers on its GPU have loaded, and two workers with such stages load one after the other. The memory that the
    other workers need later, for larger batches, is not part of the stage's budget.
    """
    filling = {worker.name for worker in workers if any(graph.stage(name).fills_memory for name in worker.stage_names)}
    ordered = sorted(workers, key=lambda worker: worker.name in filling)  # workers in `filling` last
    after = {
        worker.name: tuple(
            other.name for other in ordered[:position] if worker.name in filling and _share_a_gpu(other, worker)
        )
        for position, worker in enumerate(ordered)
    }
    return tuple(msgspec.structs.replace(worker, after=after[worker.name]) for worker in workers)


def _share_a_gpu(worker: WorkerPlan, other: WorkerPlan) -> bool:
    return worker.host == other.host and bool(set(worker.gpus) & set(other.gpus))


def _environment(worker: str, stages: Mapping[str, StageConfig]) -> dict[str, str]:
    joined: dict[str, tuple[str, str]] = {}
    for name, stage in stages.items():
        if "CUDA_VISIBLE_DEVICES" in stage.environment:
            raise StartupError(
                f"stages.{name}.environment: the server itself sets CUDA_VISIBLE_DEVICES; set stages.{name}.gpus "
                "instead."
            )
        for variable, value in stage.environment.items():
            other, said = joined.setdefault(variable, (name, value))
            if said != value:
                raise StartupError(
                    f"Worker {worker} cannot set the environment variable {variable} both to {said} for {other} and to "
                    f"{value} for {name}."
                )
    return {variable: value for variable, (_, value) in joined.items()}


def _check_sums(workers: Sequence[WorkerPlan], gpus: Sequence[Gpu]) -> None:
    """Refuse memory budgets whose sum is larger than the memory of their GPU, or that contradict each other."""
    for gpu in gpus:
        here = {label: plan for label, plan in _labelled(workers) if gpu.index in plan.gpus}
        for plan in here.values():
            static = _static(plan)
            if plan.memory is not None and static is not None and plan.memory < static * gpu.memory:
                raise StartupError(
                    f"stages.{plan.name}: mem_fraction_static reserves {static:.3g} of {gpu.title} for weights and "
                    f"KV cache, but stages.{plan.name}.memory limits the whole stage to "
                    f"{plan.memory / gpu.memory:.3g} of this GPU."
                )
        given = {label: _share(plan, gpu) for label, plan in here.items()}
        known = {name: part for name, part in given.items() if part is not None}
        if sum(known.values()) > 1:
            parts = " + ".join(f"{name} {part:.3g}" for name, part in known.items())
            raise StartupError(
                f"The memory budgets on {gpu.label} add up to {sum(known.values()):.3g} times "
                f"its memory: {parts}. Set smaller budgets, or use other GPUs."
            )


def _labelled(workers: Iterable[WorkerPlan]) -> list[tuple[str, StagePlan]]:
    """Each stage of each worker, with its name and, in a group, the number of the replica."""
    return [
        (f"{plan.name}@{worker.replica}" if worker.group else plan.name, plan)
        for worker in workers
        for plan in worker.stages
    ]


def _share(plan: StagePlan, gpu: Gpu) -> float | None:
    """The fraction of `gpu` that the configuration reserves for a stage; None if the configuration sets no memory for
    the stage.
    """
    return plan.memory / gpu.memory if plan.memory is not None else _static(plan)


def _static(plan: StagePlan) -> float | None:
    """The fraction of each GPU that the configuration reserves for a stage's weights and KV cache, or None."""
    options: StageOptions = plan.options
    return options.mem_fraction_static


def _list(indices: Sequence[int], gpus: Sequence[Gpu]) -> str:
    return ", ".join(str(gpus[index].number) for index in indices) or "none"
