"""Lists deployments that have one more GPU, or one more replica of a group, than a given deployment."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import msgspec
from msgspec import Struct

from omni_pipeline.contract.graph import Graph
from omni_pipeline.simulation.site import SiteStage, SiteWorker

WHOLE = "all"


class Change(Struct, frozen=True):
    """A change of a deployment.

    Attributes:
        text: What is changed.
        gpus: Number of additional GPUs.
        workers: The processes of the changed deployment.
    """

    text: str
    gpus: int
    workers: tuple[SiteWorker, ...]


def changes(workers: tuple[SiteWorker, ...], graph: Graph, used: Collection[str]) -> Iterator[Change]:
    """Yields changes of two kinds. The first changes each add one replica of a group, on GPUs that no other stage uses.
    The later changes each add one GPU, and move a stage or a group to this GPU. Before the move, the stage or the group
    shares its GPU with other stages.

    Replicas of configured groups come first. Then come the graph's groups and stages that are in no configured group,
    and the whole pipeline if no group is configured. Stages that cannot compute on a GPU are considered only in groups.

    Args:
        used: The stages that have work in the simulation. A change is left out if it changes only other stages.
    """
    yield from _replicas(workers, graph, used)
    yield from _moves(workers, graph, used)


def _replicas(workers: tuple[SiteWorker, ...], graph: Graph, used: Collection[str]) -> Iterator[Change]:
    for name, stages in _units(workers, graph).items():
        made = _with_replica(workers, name, stages) if stages.intersection(used) else None
        if made is not None:
            gpus = len(_gpus(made)) - len(_gpus(workers))
            yield Change(f"one more replica of {name}", gpus, made)


def _units(workers: tuple[SiteWorker, ...], graph: Graph) -> dict[str, frozenset[str]]:
    """The sets of stages that can have replicas, by name."""
    units: dict[str, frozenset[str]] = {}
    for worker in workers:
        if worker.group:
            units[worker.group] = units.get(worker.group, frozenset()) | {stage.name for stage in worker.stages}
    taken = frozenset().union(*units.values())
    computing = {spec.name for spec in graph.stages if spec.accelerated}
    units |= {name: stages for name, stages in graph.groups.items() if stages & computing and not stages & taken}
    for name in (spec.name for spec in graph.stages if spec.name in computing):
        if not any(name in stages for stages in (*units.values(), *graph.together)):
            units[name] = frozenset({name})
    if not taken:
        units[WHOLE] = frozenset(graph.stage_names)
    return units


def _with_replica(workers: tuple[SiteWorker, ...], group: str, stages: frozenset[str]) -> tuple[SiteWorker, ...] | None:
    """The deployment with one more replica of a group; None if its stages share a process with other stages."""
    own = [worker for worker in workers if any(stage.name in stages for stage in worker.stages)]
    if any(stage.name not in stages for worker in own for stage in worker.stages):
        return None
    first = [worker for worker in own if not worker.group or worker.replica == 0]
    number = 1 + max(worker.replica for worker in own)
    unused = 1 + max(_gpus(workers), default=-1)
    fresh = {gpu: unused + place for place, gpu in enumerate(sorted(_gpus(first)))}
    copies = [
        SiteWorker(
            f"{_base(worker)}@{number}",
            tuple(_on(stage, tuple(fresh[gpu] for gpu in stage.gpus)) for stage in worker.stages),
            group,
            number,
            worker.host,
        )
        for worker in first
    ]
    grouped = [msgspec.structs.replace(worker, group=group) if worker in own else worker for worker in workers]
    return (*grouped, *copies)


def _moves(workers: tuple[SiteWorker, ...], graph: Graph, used: Collection[str]) -> Iterator[Change]:
    single = {spec.name: frozenset({spec.name}) for spec in graph.stages if spec.accelerated}
    whole = [stages for stages in graph.groups.values() if len(stages) == 1]
    units = {**graph.groups, **{name: stages for name, stages in single.items() if stages not in whole}}
    for name, stages in units.items():
        placed = [(worker, stage) for worker in workers for stage in worker.stages if stage.name in stages]
        gpus = {gpu for _, stage in placed for gpu in stage.gpus}
        rest = [stage for worker in workers for stage in worker.stages if stage.name not in stages]
        others = {gpu for stage in rest if stage.name in used for gpu in stage.gpus}
        if stages.intersection(used) and len(placed) == len(stages) and len(gpus) == 1 and gpus & others:
            yield Change(f"{name} on one more GPU", 1, _moved(workers, name, stages, 1 + max(_gpus(workers))))


def _moved(workers: tuple[SiteWorker, ...], name: str, stages: frozenset[str], gpu: int) -> tuple[SiteWorker, ...]:
    """The deployment with these stages on another GPU, in processes of their own."""
    made = []
    for worker in workers:
        going = tuple(_on(stage, (gpu,)) for stage in worker.stages if stage.name in stages)
        staying = tuple(stage for stage in worker.stages if stage.name not in stages)
        if staying:
            made.append(msgspec.structs.replace(worker, stages=staying))
        if going:
            own = f"{worker.name}:{name}" if staying else worker.name
            made.append(msgspec.structs.replace(worker, name=own, stages=going))
    return tuple(made)


def _on(stage: SiteStage, gpus: tuple[int, ...]) -> SiteStage:
    return msgspec.structs.replace(stage, gpus=gpus)


def _base(worker: SiteWorker) -> str:
    return worker.name.removesuffix(f"@{worker.replica}") if worker.group else worker.name


def _gpus(workers: Iterable[SiteWorker]) -> set[int]:
    return {gpu for worker in workers for stage in worker.stages for gpu in stage.gpus}
