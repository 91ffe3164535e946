"""A model with a single stage, for simulations whose results are known from theory."""

from __future__ import annotations

from collections.abc import Sequence

from omni_pipeline.contract.graph import COLLECTOR, GATEWAY, Edge, Graph, StageSpec
from omni_pipeline.contract.simulation import (
    Batch,
    LawSet,
    Output,
    SimulatedMessage,
    SimulatedRequest,
    SimulationModel,
    StageSite,
    StepLaw,
)
from omni_pipeline.contract.stage_options import StageOptions
from omni_pipeline.simulation.network import Costs
from omni_pipeline.simulation.run import Scenario
from omni_pipeline.simulation.site import SiteStage, SiteWorker

FREE = Costs(gateway=0.0, hop=0.0, message=0.0, latency=0.0)

GRAPH = Graph(
    name="one",
    entry="work",
    stages=(StageSpec("work", "unused:Work", StageOptions, accelerated=True),),
    edges=(Edge(GATEWAY, "work", None), Edge("work", COLLECTOR, None)),
)


class Work:
    """Answers up to `most` requests in each step. An answer has as many bytes as the request's `answer_tokens` says.

    Args:
        site: The place of the stage in the simulation. `site.options` is the number `most`.
    """

    patient = False

    def __init__(self, site: StageSite) -> None:
        self._most: int = site.options
        self._queue: list[SimulatedRequest] = []
        self._batch: list[SimulatedRequest] = []

    def has_work(self, now: float) -> bool:
        return bool(self._queue)

    def computes(self, now: float) -> bool:
        return True

    def wakes_at(self, now: float) -> float | None:
        return None

    def urgent(self, now: float) -> bool:
        return False

    def receive(self, message: SimulatedMessage, now: float) -> None:
        self._queue.append(message.body)

    def begin(self, now: float) -> Batch:
        self._batch, self._queue = self._queue[: self._most], self._queue[self._most :]
        return Batch(len(self._batch), sum(request.prompt_tokens for request in self._batch))

    def finish(self, now: float) -> Sequence[SimulatedMessage]:
        return [
            SimulatedMessage(request.id, "work", COLLECTOR, Output(1, 1.0, last=True), request.answer_tokens)
            for request in self._batch
        ]


MODEL = SimulationModel(
    stages={"work": Work},
    route=lambda request: ("work",),
    outputs=lambda request: ("work",),
    law_sets={"none": LawSet({}, "nothing")},
    item_counters={},
    frame_seconds=1.0,
)


def one_stage(law: StepLaw, *, most: int = 1, gpus: Sequence[int | None] = (None,), costs: Costs = FREE) -> Scenario:
    """A deployment with one replica for each entry of `gpus`."""
    workers = tuple(
        SiteWorker(f"work@{number}", (SiteStage("work", most, () if gpu is None else (gpu,)),), "many", number)
        for number, gpu in enumerate(gpus)
    )
    return Scenario(GRAPH, MODEL, workers, {"work": law}, costs)
