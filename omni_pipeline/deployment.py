"""What a configuration comes down to: which worker processes run which stages, where, with which options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from omni_pipeline import telemetry
from omni_pipeline.binding import gpu_sets
from omni_pipeline.config import Config, Server, StageConfig, Supervision, Trace, convert, suggestion
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu, detect, parse_size
from omni_pipeline.graph import Graph, StageSpec, load_graph
from omni_pipeline.logs import Format

Device: TypeAlias = Literal["cpu", "cuda"]


class StagePlan(Struct, frozen=True):
    """One stage of a worker.

    Attributes:
        options: An instance of the stage's options struct.
        gpus: Indices of its GPUs; none on the CPU.
        tp_size: Processes that share its work, by tensor parallelism.
        memory: Bytes that it may take of each of its GPUs, all in all; None until they are decided.
        static: Of these, bytes for weights and KV cache, in a stage that fills its memory; None until decided.
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
        gpus: What it sees of the GPUs, as ``CUDA_VISIBLE_DEVICES`` has it; empty for none.
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
        """Whether it has to start in an interpreter of its own: a GPU and an environment are met by imports."""
        return bool(self.gpus or self.environment)


class Deployment(Struct, frozen=True):
    """A configuration after every decision is made; nothing in it is optional or ``auto``.

    Attributes:
        graph_path: Where `graph` was loaded from, so that workers can do the same.
        graph: The stages that run, and the edges between them.
        model_path: As configured; `checkpoint.resolve` turns a hub name into a directory.
        workers: In graph order of their first stages.
        gpus: Those that the server may use.
        supervision: When a worker counts as hung.
        server: The HTTP side.
        log_level, log_format: As `logs.configure` takes them.
        trace: What is noted about requests.
    """

    graph_path: str
    graph: Graph
    model_path: str
    workers: tuple[WorkerPlan, ...]
    gpus: tuple[Gpu, ...]
    supervision: Supervision
    server: Server
    log_level: str
    log_format: Format
    trace: Trace

    @property
    def uses_cuda(self) -> bool:
        return any(stage.device == "cuda" for worker in self.workers for stage in worker.stages)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was said and changes nothing."""
        return tuple(
            f"stages.{plan.name}: mem_fraction_static means nothing on the CPU, where the KV cache has a fixed size"
            for worker in self.workers
            for plan in worker.stages
            if plan.device == "cpu" and getattr(plan.options, "mem_fraction_static", None) is not None
        )

    def preload(self) -> tuple[str, ...]:
        """Modules that forked workers need and can share, in order of first mention."""
        forked = {name for worker in self.workers if not worker.fresh for name in worker.stage_names}
        stages = (stage for stage in self.graph.stages if stage.name in forked)
        return tuple(dict.fromkeys(module for stage in stages for module in stage.preload))


def resolve(config: Config, gpus: Sequence[Gpu] | None = None) -> Deployment:
    """Decide everything that `config` leaves open.

    Args:
        gpus: Those to reckon with; None finds out what there is.

    Raises:
        StartupError: something in it contradicts itself, the graph or the machine.
    """
    if config.model_path is None:
        raise StartupError("No model is named: pass --model-path with a checkpoint directory or a hub name.")
    graph = load_graph(config.graph)
    for name in config.stages:
        if name not in graph.stage_names:
            raise StartupError(f"stages.{name}: there is no such stage; {suggestion(name, graph.stage_names)}")
    for name in config.server.limits.stage_requests:
        if name not in graph.stage_names:
            known = suggestion(name, graph.stage_names)
            raise StartupError(f"server.limits.stage_requests.{name}: there is no such stage; {known}")
    if config.text_only and graph.text_stages:
        graph = graph.narrowed(graph.text_stages)
    settings = {spec.name: config.stages.get(spec.name, StageConfig()) for spec in graph.stages}
    if gpus is None:
        wants = any(spec.accelerated and _wanted(settings[spec.name], config) != "cpu" for spec in graph.stages)
        gpus = detect() if wants else ()
    devices = {spec.name: _device(spec, settings[spec.name], config, bool(gpus)) for spec in graph.stages}
    sets = gpu_sets([spec for spec in graph.stages if devices[spec.name] == "cuda"], config, gpus)
    groups: dict[str, list[StagePlan]] = {}
    for spec in graph.stages:
        stage, indices = settings[spec.name], sets.get(spec.name, ())
        _check_placement(spec, stage, devices[spec.name])
        plan = StagePlan(
            name=spec.name,
            device=devices[spec.name],
            options=convert(stage.options, spec.options, f"stages.{spec.name}.options"),
            gpus=indices,
            tp_size=len(indices) or stage.tp_size or 1,
            memory=_bytes(stage.memory, [gpus[index] for index in indices]),
        )
        own = "gpu" if config.colocate and spec.accelerated else spec.name
        groups.setdefault(stage.worker or own, []).append(plan)
    workers: Sequence[WorkerPlan] = tuple(_worker(name, plans, graph, config, gpus) for name, plans in groups.items())
    _check_sums(workers, gpus)
    workers = _in_order(workers, graph)
    return Deployment(
        graph_path=config.graph,
        graph=graph,
        model_path=config.model_path,
        workers=workers,
        gpus=tuple(gpus),
        supervision=config.supervision,
        server=config.server,
        log_level=config.log_level.upper(),
        log_format=config.log_format,
        trace=telemetry.resolve(config.trace, os.environ),
    )


def _wanted(stage: StageConfig, config: Config) -> str:
    return stage.device if stage.device != "auto" else config.device


def _device(spec: StageSpec, stage: StageConfig, config: Config, has_cuda: bool) -> Device:
    if not spec.accelerated:
        if stage.device == "cuda":
            raise StartupError(f"stages.{spec.name}.device: this stage computes on the CPU only.")
        return "cpu"
    match _wanted(stage, config):
        case "cuda":
            if not has_cuda:
                raise StartupError(f"Stage {spec.name} is to run on cuda, but no GPU is visible: use --device cpu.")
            return "cuda"
        case "cpu":
            return "cpu"
    return "cuda" if has_cuda else "cpu"


def _check_placement(spec: StageSpec, stage: StageConfig, device: Device) -> None:
    """Refuse what says where on a GPU a stage is that is on none, and ranks that it cannot have."""
    if device == "cpu":
        why = "it computes on the CPU" + (
            ", as no GPU is visible" if spec.accelerated and stage.device == "auto" else ""
        )
        if stage.gpus:
            raise StartupError(f"stages.{spec.name}.gpus: {spec.name} can have no GPU: {why}.")
        if stage.memory is not None:
            raise StartupError(f"stages.{spec.name}.memory: a budget is for a stage on a GPU; {why}.")
    if (stage.tp_size or 1) > 1 and not spec.parallel:
        raise StartupError(f"stages.{spec.name}.tp_size: {spec.name} knows no tensor parallelism.")


def _bytes(memory: float | str | None, gpus: Sequence[Gpu]) -> int | None:
    """A budget on each of `gpus`, in bytes."""
    if memory is None or isinstance(memory, str):
        return None if memory is None else parse_size(memory)
    return int(memory * min(gpu.memory for gpu in gpus))


def _worker(name: str, plans: list[StagePlan], graph: Graph, config: Config, gpus: Sequence[Gpu]) -> WorkerPlan:
    if name in graph.stage_names and name not in [plan.name for plan in plans]:
        raise StartupError(f"Worker {name} bears the name of a stage that it does not run: choose another name.")
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
    stages = [config.stages.get(plan.name, StageConfig()) for plan in plans]
    return WorkerPlan(
        name=name,
        stages=tuple(plans),
        threads=max(stage.threads for stage in stages),
        gpus=tuple(gpus[index].device for index in first.gpus),
        environment=_environment(name, {plan.name: stage for plan, stage in zip(plans, stages, strict=True)}),
    )


def _in_order(workers: Sequence[WorkerPlan], graph: Graph) -> tuple[WorkerPlan, ...]:
    """`workers` with those named that each has to wait for, so that memory is measured when it means something.

    A stage that fills its memory measures what is free before it loads and again afterwards, and takes the difference
    for its own. Whoever loads on its GPU in between would be counted with it, and its cache be too small by that much.
    So it loads when all others on its GPU have, and two of its kind load one after the other. What the others will
    still take, for the largest batch they have not seen yet, is kept for them in its budget.
    """
    filling = {worker.name for worker in workers if any(graph.stage(name).fills_memory for name in worker.stage_names)}
    ordered = sorted(workers, key=lambda worker: worker.name in filling)  # else as they are
    after = {
        worker.name: tuple(
            other.name for other in ordered[:position] if worker.name in filling and set(other.gpus) & set(worker.gpus)
        )
        for position, worker in enumerate(ordered)
    }
    return tuple(msgspec.structs.replace(worker, after=after[worker.name]) for worker in workers)


def _environment(worker: str, stages: dict[str, StageConfig]) -> dict[str, str]:
    joined: dict[str, tuple[str, str]] = {}
    for name, stage in stages.items():
        for variable, value in stage.environment.items():
            other, said = joined.setdefault(variable, (name, value))
            if said != value:
                raise StartupError(
                    f"Worker {worker} is to have {variable}={said} for {other} and {variable}={value} for {name}."
                )
    return {variable: value for variable, (_, value) in joined.items()}


def _check_sums(workers: Sequence[WorkerPlan], gpus: Sequence[Gpu]) -> None:
    """Refuse budgets that come to more than the GPU they are on."""
    plans = [plan for worker in workers for plan in worker.stages]
    for gpu in gpus:
        given = {plan.name: share(plan, gpu) for plan in plans if gpu.index in plan.gpus}
        known = {name: part for name, part in given.items() if part is not None}
        if sum(known.values()) > 1:
            parts = " + ".join(f"{name} {part:.3g}" for name, part in known.items())
            raise StartupError(
                f"GPU {gpu.index} ({gpu.name}) is given away {sum(known.values()):.3g} times: {parts}. "
                "Give smaller budgets, or other GPUs."
            )


def share(plan: StagePlan, gpu: Gpu) -> float | None:
    """The fraction of `gpu` that the configuration gives to a stage on it, or None."""
    if plan.memory is not None:
        return plan.memory / gpu.memory
    return getattr(plan.options, "mem_fraction_static", None)


def _list(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices)) or "none"
