"""Turns a configuration into a deployment: which worker runs which stages, on which device, with which options."""

from __future__ import annotations

import os
from collections.abc import Sequence

from omni_pipeline.config import access, trace_target
from omni_pipeline.config.schema import Config, Server, StageConfig, convert
from omni_pipeline.contract.graph import StageSpec, load_graph
from omni_pipeline.contract.plan import Device, StagePlan
from omni_pipeline.deployment.gpu_assignment import gpu_sets
from omni_pipeline.deployment.worker_grouping import grouped
from omni_pipeline.errors import StartupError, suggestion
from omni_pipeline.gpus import Gpu, detect
from omni_pipeline.sizes import parse_size
from omni_pipeline.supervision.plan import PipelinePlan


class Deployment(PipelinePlan, frozen=True):
    """A configuration after every decision is made. No value is ``auto`` or still to be decided.

    Attributes:
        model_path: The model path of the configuration; `checkpoint.find_checkpoint` turns a hub name into a directory.
        gpus: The GPUs that the server may use.
        server: Settings of the HTTP server.
    """

    model_path: str
    gpus: tuple[Gpu, ...]
    server: Server

    @property
    def uses_cuda(self) -> bool:
        return any(stage.device == "cuda" for worker in self.workers for stage in worker.stages)

    @property
    def layout(self) -> tuple[str, ...]:
        """One line of text for each GPU that has stages, with the names of these stages."""
        plans = [plan for worker in self.workers for plan in worker.stages]
        stages = {gpu: ", ".join(plan.name for plan in plans if gpu.index in plan.gpus) for gpu in self.gpus}
        return tuple(f"GPU {gpu.index} ({gpu.name}): {names}" for gpu, names in stages.items() if names)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on settings that have no effect, or that allow more access than an operator may expect."""
        ineffective = tuple(
            f"stages.{plan.name}: mem_fraction_static has no effect on the CPU, where the KV cache has a fixed size"
            for worker in self.workers
            for plan in worker.stages
            if plan.device == "cpu" and plan.options.mem_fraction_static is not None
        )
        return ineffective + access.notes(self.server)


def resolve(config: Config, gpus: Sequence[Gpu] | None = None) -> Deployment:
    """Decide everything that `config` leaves open.

    Args:
        gpus: The GPUs to use; None means the GPUs of this machine.

    Raises:
        StartupError: the configuration contradicts itself, or does not fit the graph or the machine.
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
        _check_placement(spec, stage, devices[spec.name], config)
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
    workers = grouped(groups, graph, settings, gpus)
    return Deployment(
        graph_path=config.graph,
        graph=graph,
        model_path=config.model_path,
        workers=workers,
        gpus=tuple(gpus),
        supervision=config.supervision,
        server=access.without_root(config.server),
        log_level=config.log_level.upper(),
        log_format=config.log_format,
        trace=trace_target.resolve_trace(config.trace, os.environ),
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


def _check_placement(spec: StageSpec, stage: StageConfig, device: Device, config: Config) -> None:
    """Refuse GPU settings of a stage on the CPU, and several ranks for a stage that cannot be divided."""
    if device == "cpu":
        undecided = spec.accelerated and _wanted(stage, config) == "auto"
        why = "it computes on the CPU" + (", as no GPU is visible" if undecided else "")
        if stage.gpus:
            raise StartupError(f"stages.{spec.name}.gpus: {spec.name} can have no GPU: {why}.")
        if stage.memory is not None:
            raise StartupError(f"stages.{spec.name}.memory: a budget is for a stage on a GPU; {why}.")
    if (stage.tp_size or 1) > 1 and not spec.parallel:
        raise StartupError(f"stages.{spec.name}.tp_size: {spec.name} does not support tensor parallelism.")


def _bytes(memory: float | str | None, gpus: Sequence[Gpu]) -> int | None:
    """A memory budget in bytes, for each of `gpus`."""
    if memory is None or isinstance(memory, str):
        return None if memory is None else parse_size(memory)
    return int(memory * min(gpu.memory for gpu in gpus))
