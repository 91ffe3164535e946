"""Defines the supervisor's input: the workers to keep running, and the settings for all workers."""

from __future__ import annotations

from msgspec import Struct

from omni_pipeline.config.schema import Supervision, Trace
from omni_pipeline.contract.graph import Graph
from omni_pipeline.contract.plan import WorkerPlan
from omni_pipeline.logs import Format


class PipelinePlan(Struct, frozen=True):
    """The workers of one pipeline, after every decision is made.

    Attributes:
        graph_path: The ``package.module:NAME`` of `graph`. Workers load the graph by this name.
        graph: The stages that run, and the edges between them.
        workers: The workers, in graph order of their first stages.
        supervision: Time limits after which a worker counts as hung.
        log_level, log_format: Arguments of `logs.configure`.
        trace: The configuration of the traces of requests.
    """

    graph_path: str
    graph: Graph
    workers: tuple[WorkerPlan, ...]
    supervision: Supervision
    log_level: str
    log_format: Format
    trace: Trace

    def preload(self) -> tuple[str, ...]:
        """Modules that forked workers need and can share, without duplicates, in graph order."""
        forked = {name for worker in self.workers if not worker.fresh for name in worker.stage_names}
        stages = (stage for stage in self.graph.stages if stage.name in forked)
        return tuple(dict.fromkeys(module for stage in stages for module in stage.preload))
