"""What a configuration comes down to: which worker processes run which stages, where, with which options."""

from __future__ import annotations

import glob
import os
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from omni_pipeline.config import Config, Server, StageConfig, Supervision, convert, suggestion
from omni_pipeline.errors import StartupError
from omni_pipeline.graph import Graph, StageSpec, load_object

Device: TypeAlias = Literal["cpu", "cuda"]


class StagePlan(Struct, frozen=True):
    """One stage of a worker. `options` is an instance of the stage's options struct."""

    name: str
    device: Device
    options: Any


class WorkerPlan(Struct, frozen=True):
    """One worker process: its stages in graph order, and the torch threads they share."""

    name: str
    stages: tuple[StagePlan, ...]
    threads: int

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)


class Deployment(Struct, frozen=True):
    """A configuration after every decision is made; nothing in it is optional or ``auto``.

    Attributes:
        graph_path: Where `graph` was loaded from, so that workers can do the same.
        graph: The stages that run, and the edges between them.
        model_path: As configured; `checkpoint.resolve` turns a hub name into a directory.
        workers: In graph order of their first stages.
        supervision: When a worker counts as hung.
        server: The HTTP side.
        log_level: As Python's logging names it.
    """

    graph_path: str
    graph: Graph
    model_path: str
    workers: tuple[WorkerPlan, ...]
    supervision: Supervision
    server: Server
    log_level: str

    @property
    def uses_cuda(self) -> bool:
        return any(stage.device == "cuda" for worker in self.workers for stage in worker.stages)

    def preload(self) -> tuple[str, ...]:
        """Modules that workers need and can share, in order of first mention."""
        return tuple(dict.fromkeys(module for stage in self.graph.stages for module in stage.preload))


def resolve(config: Config) -> Deployment:
    """Decide everything that `config` leaves open.

    Raises:
        StartupError: something in it contradicts the graph or this machine.
    """
    if config.model_path is None:
        raise StartupError("No model is named: pass --model-path with a checkpoint directory or a hub name.")
    graph = _load_graph(config.graph)
    for name in config.stages:
        if name not in graph.stage_names:
            raise StartupError(f"stages.{name}: there is no such stage; {suggestion(name, graph.stage_names)}")
    if config.text_only and graph.text_stages:
        graph = graph.narrowed(graph.text_stages)
    has_cuda = cuda_present()
    groups: dict[str, list[StagePlan]] = {}
    for spec in graph.stages:
        stage = config.stages.get(spec.name, StageConfig())
        plan = StagePlan(
            name=spec.name,
            device=_device(spec, stage, config, has_cuda),
            options=convert(stage.options, spec.options, f"stages.{spec.name}.options"),
        )
        groups.setdefault(stage.worker or spec.name, []).append(plan)
    return Deployment(
        graph_path=config.graph,
        graph=graph,
        model_path=config.model_path,
        workers=tuple(_worker(name, plans, graph, config) for name, plans in groups.items()),
        supervision=config.supervision,
        server=config.server,
        log_level=config.log_level.upper(),
    )


def cuda_present() -> bool:
    """Whether this process may use an NVIDIA GPU, found out without loading a CUDA library."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "none", "NoDevFiles"):
        return False
    return bool(glob.glob("/dev/nvidia[0-9]*")) or os.path.exists("/dev/dxg")


def _load_graph(path: str) -> Graph:
    try:
        graph = load_object(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise StartupError(f"graph: cannot load {path}: {error}") from error
    if not isinstance(graph, Graph):
        raise StartupError(f"graph: {path} is a {type(graph).__name__}, not a stage graph.")
    return graph


def _device(spec: StageSpec, stage: StageConfig, config: Config, has_cuda: bool) -> Device:
    if not spec.accelerated:
        if stage.device == "cuda":
            raise StartupError(f"stages.{spec.name}.device: this stage computes on the CPU only.")
        return "cpu"
    wanted = stage.device if stage.device != "auto" else config.device
    if wanted == "auto":
        return "cuda" if has_cuda else "cpu"
    if wanted == "cuda" and not has_cuda:
        raise StartupError(f"Stage {spec.name} is to run on cuda, but no GPU is visible: use --device cpu.")
    return wanted


def _worker(name: str, plans: list[StagePlan], graph: Graph, config: Config) -> WorkerPlan:
    if name in graph.stage_names and name not in [plan.name for plan in plans]:
        raise StartupError(f"Worker {name} bears the name of a stage that it does not run: choose another name.")
    devices = {plan.device: plan.name for plan in plans if graph.stage(plan.name).accelerated}
    if len(devices) > 1:
        raise StartupError(
            f"Worker {name} is to run {devices['cpu']} on the CPU and {devices['cuda']} on a GPU: "
            "the accelerated stages of one worker share a device."
        )
    threads = max(config.stages.get(plan.name, StageConfig()).threads for plan in plans)
    return WorkerPlan(name=name, stages=tuple(plans), threads=threads)
