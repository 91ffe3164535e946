"""Adds replicas of a group, and removes replicas, while the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from msgspec import Struct

from omni_pipeline.contract.plan import WorkerPlan
from omni_pipeline.supervision.bindings import Bindings
from omni_pipeline.supervision.control_socket import OrderError
from omni_pipeline.supervision.worker_lifecycle import Fleet
from omni_pipeline.supervision.worker_state import Phase, WorkerState

# The argument `kind` of `ControlSocket` for orders to change the number of replicas.
SCALING = "scale"


class ScaleOrder(Struct, forbid_unknown_fields=True):
    """The order to change the number of replicas of a group."""

    group: str
    replicas: int


class ScalingError(OrderError):
    """Raised if a group cannot have the ordered number of replicas."""


class Scaling:
    """Changes the number of replicas of groups, one order at a time.

    A new replica loads and answers a warm-up request, as after a restart. Then the replica gets other requests. A
    replica that is being removed gets no new requests, and ends when the last of its requests has ended. So no request
    fails.

    Args:
        plans: All workers for which the server has planned memory, in the order of their replicas.
    """

    def __init__(self, plans: Sequence[WorkerPlan], fleet: Fleet, bindings: Bindings) -> None:
        self._plans = plans
        self._fleet = fleet
        self._bindings = bindings
        self._turn = asyncio.Lock()

    async def carry_out(self, order: ScaleOrder, tell: Callable[[str], None]) -> None:
        """Carry out an order from the control socket; see `scale`."""
        await self.scale(order.group, order.replicas, tell)

    async def scale(self, group: str, number: int, tell: Callable[[str], None]) -> None:
        """Add or remove replicas of `group` until the group has `number` replicas. Returns when the new replicas have
        answered a warm-up request and the removed replicas have ended.

        Args:
            tell: Called with a line of text for each step.

        Raises:
            ScalingError: there is no such group, `number` is larger than the number of planned replicas, the server is
                starting or stopping, or a new replica could not load.
        """
        planned: dict[int, list[WorkerPlan]] = {}
        for plan in self._plans:
            if plan.group == group:
                planned.setdefault(plan.replica, []).append(plan)
        if not planned or not group:
            known = ", ".join(dict.fromkeys(plan.group for plan in self._plans if plan.group))
            raise ScalingError(f"There is no group {group} in the configuration; known here: {known or 'none'}.")
        if not 1 <= number <= len(planned):
            raise ScalingError(
                f"The group {group} can have 1 to {len(planned)} replicas, because memory is planned only for these "
                f"replicas. For more replicas, raise groups.{group}.max_replicas, and restart the server."
            )
        async with self._turn:
            if self._fleet.starting or self._fleet.stopping:
                raise ScalingError("The number of replicas cannot change while the server starts or stops.")
            running = self._fleet.roster.replicas()[group]
            absent = sorted(planned.keys() - running.keys())
            for replica in absent[: max(0, number - len(running))]:
                await self._add(planned[replica], tell)
            for replica in sorted(running, reverse=True)[: max(0, len(running) - number)]:
                await self._remove(group, replica, running[replica], tell)
            tell(f"The group {group} has {number} {'replica' if number == 1 else 'replicas'}.")

    async def _add(self, plans: Sequence[WorkerPlan], tell: Callable[[str], None]) -> None:
        roster, names = self._fleet.roster, ", ".join(plan.name for plan in plans)
        tell(f"Starting {names}.")
        for plan in plans:
            self._fleet.add(plan)
        added = [worker for worker in roster if worker.plan in plans]
        await self._fleet.until(
            lambda: (
                self._fleet.stopping
                or any(worker not in roster or worker.host_lost for worker in added)
                or all(worker.warm and roster.reachable(worker) for worker in added)
            )
        )
        failed = next((worker for worker in added if worker not in roster or worker.host_lost), None)
        if failed is None and not self._fleet.stopping:
            for worker in added:
                worker.phase = Phase.STAYING
            return
        for worker in added:
            if worker in roster:
                self._fleet.retire(worker)
        reason = "the server is stopping"
        if failed is not None:
            lost = f"waits for the host {failed.plan.host}, which has left"
            reason = f"{failed.name} {lost if failed.host_lost else failed.last_end}"
        raise ScalingError(f"The replica has not been added: {reason}.")

    async def _remove(
        self, group: str, replica: int, workers: Sequence[WorkerState], tell: Callable[[str], None]
    ) -> None:
        roster = self._fleet.roster
        for worker in workers:
            worker.phase = Phase.LEAVING
        number = len(self._bindings.requests(group, replica))
        tell(f"Waiting for the requests of replica {replica} to end. Number of requests: {number}.")
        await self._fleet.until(lambda: self._fleet.stopping or not self._bindings.requests(group, replica))
        for worker in workers:
            if worker in roster:
                self._fleet.retire(worker)
        await self._fleet.until(lambda: self._fleet.stopping or not any(worker in roster for worker in workers))
        tell(f"Stopped {', '.join(worker.name for worker in workers)}.")
