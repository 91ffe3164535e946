"""The stage graph as data: the stages, and the messages that pass between them.

A graph defines the computations. The configuration defines which worker process performs each computation, and on which
device (see `config.schema`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from msgspec import Struct

from omni_pipeline.contract.cpu_fit import TellCpuChoice
from omni_pipeline.contract.edge_traffic import TellTraffic
from omni_pipeline.contract.flag import Flag
from omni_pipeline.contract.stage_fit import TellMisfit
from omni_pipeline.contract.stage_memory import TellNeeds
from omni_pipeline.contract.stage_options import StageOptions
from omni_pipeline.errors import StartupError

TellTensors: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, tuple[int, int, bool]]]
TellConfig: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Any]]
TellReason: TypeAlias = Callable[[Mapping[str, Any]], str | None]

# Every graph begins and ends in the main process. These are the names of the beginning and of the end of every graph.
GATEWAY = "gateway"
COLLECTOR = "collector"


class StageSpec(Struct, frozen=True):
    """One stage of a graph.

    Attributes:
        name: Unique name, used in configuration, logs and metrics.
        factory: ``package.module:Class`` that builds the stage. The worker calls this class with a
            `contract.stage.StageContext`, and gets a `contract.stage.Stage`.
        options: Type of the stage's own options. The import of its module must not import torch.
        preload: Modules whose import takes long, and that forked processes can share safely.
        accelerated: Whether the stage computes on a GPU when there is one.
        weights: Name prefixes of the checkpoint's tensors that the stage loads; empty for a stage without weights.
        parallel: Whether several GPUs can divide the stage's work among them (tensor parallelism).
        misfit: Function that returns the reason why the stage cannot compute with a checkpoint's weights on its
            devices. The attribute is None for a stage that can always compute.
        fills_memory: Whether the stage fills its whole memory budget, for example with a KV cache. Such a stage loads
            after the other stages on its GPU. Otherwise, memory that another stage allocates at the same time would
            count as this stage's own memory.
        usual_gpu: Index of the stage's GPU if there are several GPUs and the configuration specifies no GPU for the
            stage.
        needs: Function that computes, without torch, the memory that the stage needs in addition to its weights; None
            if this memory is negligible.
        on_cpu: Function that chooses how the stage computes on a CPU; None for a stage with one thread.
        prefix_cache: Name of the stage's own metric for the size of its prefix cache in tokens (see
            `contract.stage.Stage.stats`). Empty if the stage has no prefix cache that a choice of replicas should
            consider.
    """

    name: str
    factory: str
    options: type[StageOptions]
    preload: tuple[str, ...] = ()
    accelerated: bool = False
    weights: tuple[str, ...] = ()
    parallel: bool = False
    misfit: TellMisfit | None = None
    fills_memory: bool = False
    usual_gpu: int = 0
    needs: TellNeeds | None = None
    on_cpu: TellCpuChoice | None = None
    prefix_cache: str = ""


class CheckpointSpec(Struct, frozen=True):
    """Files and settings that a checkpoint of the graph's model must have, in addition to its weights.

    Attributes:
        title: Name of the model in messages.
        model_types: Accepted values of `model_type` in ``config.json``.
        files: Required files. Each entry is a tuple of alternatives, such as
            ``(("vocab.json", "merges.txt"), ("tokenizer.json",))``. All files of one alternative must exist.
        tensors: Function that derives the tensors of a checkpoint from its parsed ``config.json``. For the name of each
            tensor, the result has the number of elements, the number of bytes, and whether the tensor keeps its type
            when it is loaded. None if the tensors cannot be derived.
        plain: Function that returns the ``config.json`` of the same model without quantisation. This ``config.json``
            describes the weights in the memory of a CPU, because a stage on a CPU dequantises its weights.
        quantised: Function that returns the ``config.json`` of the same model with its weights in FP8.
        text_only: Function that returns the reason why a checkpoint with this ``config.json`` can be served only with
            the graph's text stages, as a sentence without its full stop. The function returns None if the checkpoint
            can be served with all stages. The function raises StartupError if ``config.json`` contradicts itself. The
            attribute is None if every checkpoint can be served with all stages.
    """

    title: str
    model_types: tuple[str, ...]
    files: tuple[tuple[tuple[str, ...], ...], ...] = ()
    tensors: TellTensors | None = None
    plain: TellConfig | None = None
    quantised: TellConfig | None = None
    text_only: TellReason | None = None


class Edge(Struct, frozen=True):
    """An edge from `source` to `target`. Messages on this edge have bodies of the type `body`: a struct, or a union of
    tagged structs.

    `traffic` computes the number of bytes that one request needs on this edge. It is None if the number is not known.
    """

    source: str
    target: str
    body: Any
    traffic: TellTraffic | None = None


class Graph(Struct, frozen=True):
    """Stages and edges.

    Attributes:
        entry: The stage at which requests enter.
        checkpoint: The checkpoint that the stages load; None if the stages load nothing.
        advice: Pairs of stages. The stage `source` of a pair sends `wire.messages.Advice` to the stage `target`.
        text_stages: Names of the stages that a text-only deployment keeps; empty if the model has no text-only
            deployment.
        flags: Additional command-line flags for this graph.
        groups: Predefined groups of stages to replicate, by name. A configuration can name these groups without a list
            of their stages.
        together: Sets of stages. If a group contains one stage of a set, it must contain all stages of this set,
            because the stages of a set exchange many messages.
        simulation: Path ``package.module:name`` of the `contract.simulation.SimulationModel` with which a deployment of
            this graph can be simulated; empty if it cannot be simulated.
    """

    name: str
    stages: tuple[StageSpec, ...]
    edges: tuple[Edge, ...]
    entry: str
    checkpoint: CheckpointSpec | None = None
    advice: tuple[Edge, ...] = ()
    text_stages: frozenset[str] = frozenset()
    flags: tuple[Flag, ...] = ()
    groups: dict[str, frozenset[str]] = {}
    together: tuple[frozenset[str], ...] = ()
    simulation: str = ""

    def __post_init__(self) -> None:
        names = {stage.name for stage in self.stages}
        if len(names) < len(self.stages):
            raise ValueError(f"graph {self.name}: two stages share a name")
        for edge in self.edges:
            for end, outside in ((edge.source, GATEWAY), (edge.target, COLLECTOR)):
                if end not in names and end != outside:
                    raise ValueError(
                        f"graph {self.name}: the edge {edge.source} → {edge.target} names an unknown stage"
                    )
        for edge in self.advice:
            if not {edge.source, edge.target} <= names:
                raise ValueError(f"graph {self.name}: the advice {edge.source} → {edge.target} names an unknown stage")
        for stages in (*self.groups.values(), *self.together):
            if not stages <= names:
                missing = ", ".join(sorted(stages - names))
                raise ValueError(f"graph {self.name}: a group names an unknown stage: {missing}")
        if self.entry not in names:
            raise ValueError(f"graph {self.name}: the entry {self.entry} is not a stage of this graph")

    def stage(self, name: str) -> StageSpec:
        """The stage called `name`. Raises KeyError if there is no such stage."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)

    def body_types(self) -> dict[tuple[str, str], Any]:
        """Body type of each edge, as `wire.codec.Codec` expects it."""
        return {(edge.source, edge.target): edge.body for edge in self.edges}

    def advice_types(self) -> dict[tuple[str, str], Any]:
        """For each pair of stages in `advice`: the body type of the `wire.messages.Advice` between these stages.
        `wire.codec.Codec` uses the result.
        """
        return {(edge.source, edge.target): edge.body for edge in self.advice}

    def narrowed(self, names: frozenset[str]) -> Graph:
        """A graph with only the stages in `names` and the edges between them."""
        ends = names | {GATEWAY, COLLECTOR}
        return Graph(
            name=self.name,
            stages=tuple(stage for stage in self.stages if stage.name in names),
            edges=tuple(edge for edge in self.edges if edge.source in ends and edge.target in ends),
            entry=self.entry,
            checkpoint=self.checkpoint,
            advice=tuple(edge for edge in self.advice if edge.source in names and edge.target in names),
            groups={name: kept for name, stages in self.groups.items() if (kept := stages & names)},
            together=tuple(kept for stages in self.together if (kept := stages & names)),
            simulation=self.simulation,
        )


def load_graph(path: str) -> Graph:
    """The graph with the path ``package.module:name``. Raises StartupError if it cannot be loaded."""
    try:
        graph = load_object(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise StartupError(f"graph: cannot load {path}: {error}") from error
    if not isinstance(graph, Graph):
        raise StartupError(f"graph: {path} is a {type(graph).__name__}, not a stage graph.")
    return graph


def load_object(path: str) -> Any:
    """The object with the path ``package.module:name``. Raises ImportError or AttributeError."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def load_factory(spec: StageSpec) -> Callable[..., Any]:
    """The callable that builds the stage of `spec`."""
    return load_object(spec.factory)
