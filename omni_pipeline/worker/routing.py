"""Finds the process to which a worker sends a message. The process depends on the target stage. If the target stage has
replicas, the process also depends on the replica that the message's request uses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from msgspec import UNSET

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.wire.messages import Abort, Binding, Work


class Routing:
    """The addresses of the other processes, and the replicas that each request uses.

    A worker gets the replicas of a request from the request's first message. The worker keeps these replicas as long as
    its stages have data of the request, or a stream of the request is open.

    Args:
        addresses: Endpoint of each process, by stage and number of the replica. A stage without replicas has the
            number 0.
        home: Endpoint of the main process.
        groups: For each stage in a replicated group of stages: the name of the group.
        group, replica: The worker's own group and replica.
    """

    def __init__(
        self,
        addresses: Mapping[str, Mapping[int, str]],
        home: str,
        groups: Mapping[str, str] | None = None,
        group: str = "",
        replica: int = 0,
    ) -> None:
        self.home = home
        self.replica = replica
        self._addresses: dict[str, dict[int, str]] = {stage: dict(replicas) for stage, replicas in addresses.items()}
        self._groups = groups or {}
        self._group = group
        self._bound: dict[str, dict[str, int]] = {}

    def __len__(self) -> int:
        """Number of requests whose replicas are kept."""
        return len(self._bound)

    def __contains__(self, stage: str) -> bool:
        """Whether messages can be sent to `stage`."""
        return stage == COLLECTOR or stage in self._addresses

    def learn(self, message: Work) -> None:
        """Keep the replicas of a request, if `message` names them."""
        if message.bound is not UNSET:
            self._bound[message.request_id] = message.bound

    def bound(self, request_id: str) -> Binding:
        """The replicas that a request uses."""
        return self._bound.get(request_id, UNSET)

    def forget(self, request_id: str) -> None:
        """Drop the replicas of a request that has ended. Ignores unknown ids."""
        self._bound.pop(request_id, None)

    def keep(self, held: Collection[str]) -> None:
        """Drop the replicas of all requests that are not in `held`."""
        for request_id in self._bound.keys() - held:
            del self._bound[request_id]

    # --- addresses ---

    def address(self, stage: str, request_id: str) -> str:
        """Endpoint of the process of `stage` that works for a request.

        Raises:
            LookupError: there is no such stage, the request uses no replica of this stage, or the replica's process has
                no known endpoint.
        """
        if stage == COLLECTOR:
            return self.home
        replica = self._replica_of(stage, self._bound.get(request_id))
        if replica is None:
            raise LookupError(f"the request uses no replica of {stage}")
        return self._addresses[stage][replica]

    def owner(self, address: str) -> tuple[list[str], int]:
        """The stages and the replica of the process at `address`. If it is the main process, there are no stages."""
        found = [
            (stage, replica)
            for stage, replicas in self._addresses.items()
            for replica, each in replicas.items()
            if each == address
        ]
        return [stage for stage, _ in found], found[0][1] if found else 0

    def all_addresses(self, stage: str) -> Collection[str]:
        """Endpoints of all processes of `stage` to which this worker sends messages."""
        if self._groups.get(stage) == self._group != "":
            return [self._addresses[stage][self.replica]]
        return list(self._addresses[stage].values())

    def receivers(self, stages: Collection[str], abort: Abort) -> set[str]:
        """Endpoints of the processes of `stages` that may get messages of an aborted request from this worker. If the
        request's replicas are unknown, these are all processes of `stages`.
        """
        return set(self._receivers(stages, abort))

    def _receivers(self, stages: Collection[str], abort: Abort) -> Iterator[str]:
        for stage in stages:
            if abort.bound is UNSET:
                yield from self.all_addresses(stage)
                continue
            replica = self._replica_of(stage, abort.bound)
            if replica in self._addresses[stage]:
                yield self._addresses[stage][replica]

    def uses(self, request_id: str, stage: str, replica: int) -> bool:
        """Whether messages of a request may pass between this worker and a replica of `stage`. Also true if it is
        unknown which replica the request uses.
        """
        used = self._replica_of(stage, self._bound.get(request_id))
        return used is None or used == replica

    def move(self, stages: Collection[str], replica: int, address: str) -> set[str]:
        """Change the endpoint of a replica of `stages`; an empty `address` removes the replica. Returns the previous
        endpoints.
        """
        before = {self._addresses[stage].pop(replica, address) for stage in stages}
        for stage in stages:
            if address:
                self._addresses[stage][replica] = address
        return before - {address}

    def _replica_of(self, stage: str, bound: Mapping[str, int] | None) -> int | None:
        """The replica of `stage` that a request uses; None if it uses no replica of `stage`, or an unknown replica."""
        group = self._groups.get(stage)
        if group is None:
            return 0
        if group == self._group:
            return self.replica
        return bound.get(group) if bound else None
