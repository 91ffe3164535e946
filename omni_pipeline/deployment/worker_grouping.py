"""Groups stages into worker processes, and decides which GPUs each worker sees and which workers it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from omni_pipeline.config.schema import StageConfig
from omni_pipeline.contract.graph import Graph
from omni_pipeline.contract.plan import StagePlan, WorkerPlan
from omni_pipeline.contract.stage_options import StageOptions
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu


def grouped(
    groups: Mapping[str, Sequence[StagePlan]],
    graph: Graph,
    settings: Mapping[str, StageConfig],
    gpus: Sequence[Gpu],
) -> tuple[WorkerPlan, ...]:
    """The workers of a deployment.

    Args:
        groups: The stages of each worker in graph order, by the worker's name.
        settings: The settings of each stage in the configuration.
        gpus: The GPUs that the server may use.

    Raises:
        StartupError: stages cannot share a worker, or the sum of the memory budgets on a GPU is larger than the memory
            of the GPU.
    """
    workers = [_worker(name, plans, graph, settings, gpus) for name, plans in groups.items()]
    _check_sums(workers, gpus)
    return _in_order(workers, graph)


def _worker(
    name: str, plans: Sequence[StagePlan], graph: Graph, settings: Mapping[str, StageConfig], gpus: Sequence[Gpu]
) -> WorkerPlan:
    if name in graph.stage_names and name not in [plan.name for plan in plans]:
        raise StartupError(f"Worker {name} has the name of a stage that it does not run: choose another name.")
    accelerated = [plan for plan in plans if graph.stage(plan.name).accelerated]
    devices = {plan.device: plan.name for plan in accelerated}
    if len(devices) > 1:
        raise StartupError(
            f"Worker {name} is to run {devices['cpu']} on the CPU and {devices['cuda']} on a GPU: "
            "the accelerated stages of one worker share a device."
        )
    first = accelerated[0] if accelerated else plans[0]
    for plan in accelerated:
        if plan.gpus != first.gpus:
            raise StartupError(
                f"Worker {name} is to run {first.name} on GPU {_list(first.gpus)} and {plan.name} on GPU "
                f"{_list(plan.gpus)}: the stages of one worker share their GPUs."
            )
        if plan.tp_size > 1 and len(accelerated) > 1:
            others = ", ".join(other.name for other in accelerated if other is not plan)
            raise StartupError(
                f"Worker {name} is to run {plan.name} in {plan.tp_size} ranks beside {others}: a stage with "
                "several ranks needs a worker without other accelerated stages."
            )
    own = {plan.name: settings[plan.name] for plan in plans}
    return WorkerPlan(
        name=name,
        stages=tuple(plans),
        threads=max(stage.threads for stage in own.values()),
        gpus=tuple(gpus[index].device for index in first.gpus),
        environment=_environment(name, own),
    )


def _in_order(workers: Sequence[WorkerPlan], graph: Graph) -> tuple[WorkerPlan, ...]:
    """Returns `workers`, each with the names of the workers that have to be ready before it starts.

    A stage that fills its memory measures the free memory of its GPU before it loads and again afterwards, and counts
    the difference as its own. If another worker loaded on the same GPU in between, the other worker's memory would be
    counted too, and the stage's cache would be too small. So a worker with such a stage starts after all other workers
    on its GPU have loaded, and two workers with such stages load one after the other. The memory that the other workers
    need later, for larger batches, is not part of the stage's budget.
    """
    filling = {worker.name for worker in workers if any(graph.stage(name).fills_memory for name in worker.stage_names)}
    ordered = sorted(workers, key=lambda worker: worker.name in filling)  # workers in `filling` last
    after = {
        worker.name: tuple(
            other.name for other in ordered[:position] if worker.name in filling and set(other.gpus) & set(worker.gpus)
        )
        for position, worker in enumerate(ordered)
    }
    return tuple(msgspec.structs.replace(worker, after=after[worker.name]) for worker in workers)


def _environment(worker: str, stages: Mapping[str, StageConfig]) -> dict[str, str]:
    joined: dict[str, tuple[str, str]] = {}
    for name, stage in stages.items():
        if "CUDA_VISIBLE_DEVICES" in stage.environment:
            raise StartupError(
                f"stages.{name}.environment: the server sets CUDA_VISIBLE_DEVICES from gpus; set gpus instead."
            )
        for variable, value in stage.environment.items():
            other, said = joined.setdefault(variable, (name, value))
            if said != value:
                raise StartupError(
                    f"Worker {worker} is to have {variable}={said} for {other} and {variable}={value} for {name}."
                )
    return {variable: value for variable, (_, value) in joined.items()}


def _check_sums(workers: Sequence[WorkerPlan], gpus: Sequence[Gpu]) -> None:
    """Refuse memory budgets whose sum is larger than the memory of their GPU, or that contradict each other."""
    plans = [plan for worker in workers for plan in worker.stages]
    for gpu in gpus:
        here = [plan for plan in plans if gpu.index in plan.gpus]
        for plan in here:
            static = _static(plan)
            if plan.memory is not None and static is not None and plan.memory < static * gpu.memory:
                raise StartupError(
                    f"stages.{plan.name}: mem_fraction_static gives weights and KV cache {static:.3g} of GPU "
                    f"{gpu.index}, and memory gives the whole stage {plan.memory / gpu.memory:.3g} of it."
                )
        given = {plan.name: _share(plan, gpu) for plan in here}
        known = {name: part for name, part in given.items() if part is not None}
        if sum(known.values()) > 1:
            parts = " + ".join(f"{name} {part:.3g}" for name, part in known.items())
            raise StartupError(
                f"The memory budgets on GPU {gpu.index} ({gpu.name}) add up to {sum(known.values()):.3g} of it: "
                f"{parts}. Give smaller budgets, or other GPUs."
            )


def _share(plan: StagePlan, gpu: Gpu) -> float | None:
    """The fraction of `gpu` that the configuration gives to a stage on it, or None."""
    return plan.memory / gpu.memory if plan.memory is not None else _static(plan)


def _static(plan: StagePlan) -> float | None:
    """The fraction of each GPU that the configuration gives to a stage's weights and KV cache, or None."""
    options: StageOptions = plan.options
    return options.mem_fraction_static


def _list(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices)) or "none"
