"""Computes, for each replica of a group, where it runs and how many requests it can process at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from omni_pipeline.deployment.memory_plan import Placement
from omni_pipeline.deployment.resolve import Deployment


class ReplicaRoom(Struct, frozen=True):
    """One replica of a group.

    Attributes:
        host: Name of its host; empty for the main host.
        devices: Titles of the GPUs that its stages use, see `Gpu.title`; empty if all its stages compute on the CPU.
        requests: Maximum number of example requests that the replica can process at the same time; None if there is no
            maximum.
    """

    group: str
    replica: int
    host: str
    devices: tuple[str, ...]
    requests: int | None


def replica_rooms(deployment: Deployment, placement: Placement) -> tuple[ReplicaRoom, ...]:
    """The replicas of all groups, in the order of their first workers."""
    runs = Counter(name for worker in deployment.workers for name in worker.stage_names)
    rooms: list[ReplicaRoom] = []
    for group, replica in dict.fromkeys(
        (worker.group, worker.replica) for worker in deployment.workers if worker.group
    ):
        workers = [worker for worker in deployment.workers if (worker.group, worker.replica) == (group, replica)]
        indices = dict.fromkeys(index for worker in workers for plan in worker.stages for index in plan.gpus)
        known = [
            cache.requests if cache is not None else placement.limits[name] // runs[name]
            for worker in workers
            for name in worker.stage_names
            if (cache := placement.cache(name, worker.name)) is not None or name in placement.limits
        ]
        devices = tuple(deployment.gpus[index].title for index in sorted(indices))
        rooms.append(ReplicaRoom(group, replica, workers[0].host, devices, min(known, default=None)))
    return tuple(rooms)


def bottleneck(placement: Placement, rooms: Sequence[ReplicaRoom]) -> tuple[int | None, tuple[str, ...]]:
    """The maximum number of example requests that all stages and all groups can process at the same time, and the names
    of the stages and groups that determine this number.

    The maximum of a stage is the sum over all replicas of the stage. The maximum of a group can be smaller than the
    maximum of each stage in the group, because different stages can limit different replicas.
    """
    known = {**dict.fromkeys(placement.bounded_by, placement.requests or 0), **group_requests(rooms)}
    least = min(known.values(), default=None)
    found = tuple(name for name, number in known.items() if number == least)
    stages = tuple(name for name in found if name in placement.bounded_by)
    return least, stages or found


def group_requests(rooms: Sequence[ReplicaRoom]) -> dict[str, int]:
    """For each group with a limit: the maximum number of example requests that all its replicas together can process at
    the same time.
    """
    sums: Counter[str] = Counter()
    for room in rooms:
        if room.requests is not None:
            sums[room.group] += room.requests
    return dict(sums)
