"""Defines the supervisor's input: the workers to keep running, and the settings for all workers."""

from __future__ import annotations

from msgspec import Struct

from omni_pipeline.config.schema import Routing, Supervision, Trace
from omni_pipeline.contract.graph import Graph
from omni_pipeline.contract.plan import WorkerPlan
from omni_pipeline.logs import Format


class PipelinePlan(Struct, frozen=True):
    """The workers of one pipeline, after all decisions.

    Attributes:
        graph_path: The ``package.module:NAME`` of `graph`. Workers load the graph by this name.
        graph: The stages that run, and the edges between them.
        workers: The workers, in graph order of their first stages.
        supervision: Time limits after which a worker counts as hung.
        log_level, log_format: Arguments of `logs.configure`.
        trace: The configuration of the traces of requests.
        routing: How a replica is chosen for a request.
    """

    graph_path: str
    graph: Graph
    workers: tuple[WorkerPlan, ...]
    supervision: Supervision
    log_level: str
    log_format: Format
    trace: Trace
    routing: Routing

    def preload(self, host: str = "") -> tuple[str, ...]:
        """Modules that the forked workers of a host need and can share. The modules are in graph order, and each module
        occurs only once.
        """
        forked = {
            name for worker in self.workers if worker.host == host and not worker.fresh for name in worker.stage_names
        }
        stages = (stage for stage in self.graph.stages if stage.name in forked)
        return tuple(dict.fromkeys(module for stage in stages for module in stage.preload))
