"""Describes which process of a simulated deployment runs which stages, and on which GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from omni_pipeline.contract.plan import WorkerPlan


class SiteStage(Struct, frozen=True):
    """A stage of a process.

    Attributes:
        options: An instance of the stage's options struct.
        gpus: Indices of the GPUs that each step occupies; empty if the stage computes on the CPU.
    """

    name: str
    options: Any
    gpus: tuple[int, ...] = ()


class SiteWorker(Struct, frozen=True):
    """A process and its stages, in graph order.

    Attributes:
        group, replica: As in `contract.plan.WorkerPlan`.
        host: Name of the host; empty for the host of the main process.
    """

    name: str
    stages: tuple[SiteStage, ...]
    group: str = ""
    replica: int = 0
    host: str = ""


def site_of(workers: Iterable[WorkerPlan]) -> tuple[SiteWorker, ...]:
    """The processes that the server starts. Spare replicas are left out."""
    return tuple(
        SiteWorker(
            worker.name,
            tuple(SiteStage(plan.name, plan.options, plan.gpus) for plan in worker.stages),
            worker.group,
            worker.replica,
            worker.host,
        )
        for worker in workers
        if not worker.spare
    )
