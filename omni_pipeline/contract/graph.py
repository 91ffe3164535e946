"""The stage graph as data: the stages, and the messages that pass between them.

A graph defines which computations are made. The configuration decides on which worker process and device they are made,
see `config.schema`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from msgspec import Struct

from omni_pipeline.contract.flag import Flag
from omni_pipeline.contract.stage_fit import TellMisfit
from omni_pipeline.contract.stage_memory import TellNeeds
from omni_pipeline.contract.stage_options import StageOptions
from omni_pipeline.errors import StartupError

TellTensors: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, tuple[int, int, bool]]]
TellConfig: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Any]]

# The names of the two ends of every graph, which are in the main process.
GATEWAY = "gateway"
COLLECTOR = "collector"


class StageSpec(Struct, frozen=True):
    """One stage of a graph.

    Attributes:
        name: Unique name, used in configuration, logs and metrics.
        factory: ``package.module:Class`` called in the worker with a `contract.stage.StageContext`. Returns a
            `contract.stage.Stage`.
        options: Type of the stage's own options; must import without torch.
        preload: Modules that take long to import and are safe to share by fork.
        accelerated: Whether the stage computes on a GPU when there is one.
        weights: Name prefixes of the checkpoint's tensors that the stage loads; empty for a stage without weights.
        parallel: Whether several GPUs can divide the stage's work among them (tensor parallelism).
        misfit: Function that gives the reason why the stage cannot compute with a checkpoint's weights on its devices;
            None for a stage that can always compute.
        fills_memory: Whether the stage uses all the memory that it is given, as a KV cache does. Such a stage loads
            after the other stages on its GPU, because these stages have allocated their memory by then.
        usual_gpu: Index of the stage's GPU if there are several GPUs and the configuration names no GPU for the stage.
        needs: Function that computes, without torch, the memory that the stage needs besides its weights; None for a
            stage whose other memory is negligible.
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


class CheckpointSpec(Struct, frozen=True):
    """Files and settings that a checkpoint of the graph's model must have, besides its weights.

    Attributes:
        title: Name of the model in messages.
        model_types: Accepted values of `model_type` in ``config.json``.
        files: Required files. Each entry is a tuple of alternatives, such as
            ``(("vocab.json", "merges.txt"), ("tokenizer.json",))``. All files of one alternative must exist.
        tensors: Function that derives the tensors of a checkpoint from its parsed ``config.json``: for each name,
            the number of elements, the bytes, and whether the tensor keeps its type when it is loaded. None if tensors
            cannot be derived.
        plain: Function that gives the ``config.json`` of the same model without quantisation, because a CPU holds
            quantised weights in dequantised form.
        quantised: Function that gives the ``config.json`` of the same model with its weights in FP8.
    """

    title: str
    model_types: tuple[str, ...]
    files: tuple[tuple[tuple[str, ...], ...], ...] = ()
    tensors: TellTensors | None = None
    plain: TellConfig | None = None
    quantised: TellConfig | None = None


class Edge(Struct, frozen=True):
    """An edge from `source` to `target`. Messages on this edge have bodies of the type `body`: a struct, or a union of
    tagged structs.
    """

    source: str
    target: str
    body: Any


class Graph(Struct, frozen=True):
    """Stages and edges.

    Attributes:
        entry: The stage at which requests enter.
        checkpoint: The checkpoint that the stages load; None if the stages load nothing.
        advice: Pairs of stages of which the first sends `wire.messages.Advice` to the second.
        text_stages: Names of the stages that a text-only deployment keeps; empty if there is no such deployment.
        flags: Additional command-line flags for this graph.
    """

    name: str
    stages: tuple[StageSpec, ...]
    edges: tuple[Edge, ...]
    entry: str
    checkpoint: CheckpointSpec | None = None
    advice: tuple[Edge, ...] = ()
    text_stages: frozenset[str] = frozenset()
    flags: tuple[Flag, ...] = ()

    def __post_init__(self) -> None:
        names = {stage.name for stage in self.stages}
        if len(names) < len(self.stages):
            raise ValueError(f"graph {self.name}: two stages share a name")
        for edge in self.edges:
            for end, outside in ((edge.source, GATEWAY), (edge.target, COLLECTOR)):
                if end not in names and end != outside:
                    raise ValueError(f"graph {self.name}: edge {edge.source} → {edge.target} leaves the graph")
        for edge in self.advice:
            if not {edge.source, edge.target} <= names:
                raise ValueError(f"graph {self.name}: advice {edge.source} → {edge.target} leaves the graph")
        if self.entry not in names:
            raise ValueError(f"graph {self.name}: entry {self.entry} is not a stage")

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
        """Body type of the advice between each pair of stages, as `wire.codec.Codec` expects it."""
        return {(edge.source, edge.target): edge.body for edge in self.advice}

    def narrowed(self, names: frozenset[str]) -> Graph:
        """A graph with only the stages in `names` and the edges between them."""
        kept = names | {GATEWAY, COLLECTOR}
        return Graph(
            name=self.name,
            stages=tuple(stage for stage in self.stages if stage.name in names),
            edges=tuple(edge for edge in self.edges if edge.source in kept and edge.target in kept),
            entry=self.entry,
            checkpoint=self.checkpoint,
            advice=tuple(edge for edge in self.advice if edge.source in names and edge.target in names),
        )


def load_graph(path: str) -> Graph:
    """The graph that ``package.module:name`` names. Raises StartupError."""
    try:
        graph = load_object(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise StartupError(f"graph: cannot load {path}: {error}") from error
    if not isinstance(graph, Graph):
        raise StartupError(f"graph: {path} is a {type(graph).__name__}, not a stage graph.")
    return graph


def load_object(path: str) -> Any:
    """The object that ``package.module:name`` names. Raises ImportError or AttributeError."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def load_factory(spec: StageSpec) -> Callable[..., Any]:
    """The callable that builds the stage of `spec`."""
    return load_object(spec.factory)
