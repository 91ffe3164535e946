"""Computes the bytes that a request sends from one host to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct

from omni_pipeline.contract.edge_traffic import Traffic
from omni_pipeline.contract.graph import COLLECTOR, GATEWAY, Edge
from omni_pipeline.contract.plan import StagePlan, WorkerPlan
from omni_pipeline.contract.stage_memory import Request
from omni_pipeline.deployment.checkpoint import Checkpoint
from omni_pipeline.deployment.memory_plan import situation_of
from omni_pipeline.deployment.resolve import Deployment

HEAVY_BYTES = 25 * 10**6
"""An edge between hosts is heavy if it carries more than this number of bytes for one example request with media.
Sending this number of bytes on one encrypted connection takes about 50 ms, because a core encrypts and decrypts about
0.5 GB/s.
"""


class HostEdge(Struct, frozen=True):
    """An edge whose ends are on different hosts, for some or all requests.

    Attributes:
        routes: The pairs of hosts between which messages travel: sender and receiver. The name of the main host is
            empty.
        share: Fraction of the requests whose messages travel between hosts, if all replicas get the same number of
            requests.
        traffic: Bytes of the example request; None if they are unknown.
    """

    source: str
    target: str
    routes: tuple[tuple[str, str], ...]
    share: float
    traffic: Traffic | None

    @property
    def heavy(self) -> bool:
        return self.traffic is not None and self.traffic.media > HEAVY_BYTES


def host_edges(deployment: Deployment, checkpoint: Checkpoint, request: Request) -> tuple[HostEdge, ...]:
    """The edges between hosts, in graph order."""
    return tuple(
        found for edge in deployment.graph.edges for found in _host_edge(edge, deployment, checkpoint, request)
    )


def heavy_notes(edges: Iterable[HostEdge]) -> tuple[str, ...]:
    """A warning, as a sentence, for each heavy edge."""
    return tuple(
        f"{edge.source} sends up to {edge.traffic.media / 10**6:.0f} MB to {edge.target} on another host for one "
        f"request: put {edge.source} and {edge.target} on the same host."
        for edge in edges
        if edge.heavy and edge.traffic is not None
    )


def _host_edge(edge: Edge, deployment: Deployment, checkpoint: Checkpoint, request: Request) -> Iterator[HostEdge]:
    senders, receivers = _runs(deployment, edge.source), _runs(deployment, edge.target)
    # A request uses the same replica of a group for all stages. So different replicas of a group exchange no messages.
    pairs = [
        (sender.host if sender else "", receiver.host if receiver else "")
        for sender, _ in senders
        for receiver, _ in receivers
        if sender is None or receiver is None or not sender.group or sender.group != receiver.group
        or sender.replica == receiver.replica
    ]  # fmt: skip
    apart = [(source, target) for source, target in pairs if source != target]
    if not apart:
        return
    traffic = None
    worker, plan = senders[0]
    if edge.traffic is not None and worker is not None and plan is not None:
        traffic = edge.traffic(situation_of(deployment, checkpoint, plan, request))
    yield HostEdge(edge.source, edge.target, tuple(dict.fromkeys(apart)), len(apart) / len(pairs), traffic)


def _runs(deployment: Deployment, name: str) -> list[tuple[WorkerPlan | None, StagePlan | None]]:
    """The workers that run a stage. Each entry contains a worker and the worker's plan of this stage. If `name` is an
    end of the graph, the result is ``[(None, None)]``, because both ends are in the main process.
    """
    if name in (GATEWAY, COLLECTOR):
        return [(None, None)]
    return [(worker, plan) for worker in deployment.workers for plan in worker.stages if plan.name == name]
