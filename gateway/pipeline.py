"""Declares the interface through which the gateway uses a pipeline. The class
`omni_pipeline.supervision.pipeline.Supervisor` implements this interface.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from omni_pipeline.contract.prompt_chain import UNKNOWN_PROMPT, PromptChain
from omni_pipeline.errors import ErrorInfo
from omni_pipeline.os_process import ProcessUsage
from omni_pipeline.supervision.bindings import RouteReport
from omni_pipeline.supervision.remote_hosts import HostReport
from omni_pipeline.supervision.worker_state import ReplicaReport, WorkerReport
from omni_pipeline.wire.counters import EdgeStats
from omni_pipeline.wire.messages import Claim, Failed, Paused, StageStats, Work
from omni_pipeline.wire.trace_notes import Notes


class Pipeline(Protocol):
    """The running stages. All methods are called on the event loop of the main process, and none of them blocks."""

    def connect(
        self,
        deliver: Callable[[Work | Failed], None],
        lost: Callable[[frozenset[str], ErrorInfo, Collection[str] | None], None],
    ) -> None:
        """Register the functions that receive the pipeline's messages and the losses of workers.

        Args:
            deliver: Called with every message for the collector, in order within each request.
            lost: Called when a worker is lost. The arguments of `lost` are the stages that the worker ran, the error
                for the requests that still need these stages, and the ids of the requests that used this worker. If the
                stages have no replicas, the ids are None, which means all requests.
        """

    def trace(self, noted: Callable[[Notes], None]) -> None:
        """Register the function that receives the trace notes of the workers and of the main process. There are notes
        only if tracing is on.
        """

    def budget(self, claimed: Callable[[Claim, Callable[[], None]], None]) -> None:
        """Register the function that receives the stages' claims for memory. Each claim comes with a function that
        grants it.

        A stage waits until its claim is granted. So every claim must be granted at some time. The only exception is the
        claim of an aborted request.
        """

    def pace(self, paused: Callable[[Paused, Callable[[], None]], None]) -> None:
        """Register the function that receives the pauses of stages. Each pause comes with a function that lets the
        stage continue.

        The function that lets the stage continue must be called when the client has read most of the answer. The only
        exception is a pause of an aborted request.
        """

    async def wait_for(self, stages: Collection[str] | None, seconds: float | None) -> None:
        """Wait until `stages` can work. None means all stages.

        Args:
            seconds: Maximum time to wait; None waits for ever. If the stages will certainly need longer, the error
                is raised at once.

        Raises:
            OmniError: 503 with the time to wait, if the stages cannot work in time; 503 if the service is stopping.
        """

    async def cold(self) -> Mapping[str, int]:
        """Wait until a warm-up request is needed. A warm-up request is needed if a worker that can take work has not
        answered a warm-up request since the worker's process started.

        Returns:
            The replicas through which the warm-up request should go. The keys are the names of the groups of stages.
            Pass this mapping to `submit`.

        Raises:
            OmniError: 503 if the service is stopping.
        """

    def submit(
        self,
        request_id: str,
        body: Any,
        stages: Collection[str] | None = None,
        *,
        beside: str = "",
        warming: Mapping[str, int] | None = None,
        chain: PromptChain = UNKNOWN_PROMPT,
    ) -> None:
        """Send a request body to the entry stage. If stages have replicas, the request is bound to one replica of each
        group of stages. Call `release` or `abort` when the request ends.

        Args:
            stages: Stages that the request needs; None means all.
            beside: Id of an open request. The new request uses the same replicas as the open request, because the new
                request needs data that a stage keeps for the open request.
            warming: The result of `cold`, if this is a warm-up request.
            chain: The prompt of the request. It has an effect only if `compares_prompts` is true.

        Raises:
            OmniError: 503, with the time to wait, if one of the stages cannot work now.
        """

    @property
    def compares_prompts(self) -> bool:
        """Whether the choice of a replica depends on the prompts of new requests. The result is True if two conditions
        are met. First, at least one stage with a prefix cache belongs to a group with several replicas. Second, the
        configuration does not turn the comparison of prompts off.
        """

    def count_prompt(self, request_id: str, prompt_tokens: int, cached_tokens: int) -> None:
        """Record the number of tokens of an open request's prompt, and how many of them were in the prefix cache. If a
        request has several answers to one prompt, only the first call has an effect.
        """

    def release(self, request_id: str) -> None:
        """Record that the answer to a request is complete."""

    def abort(self, request_id: str, stages: frozenset[str], forgotten: Callable[[], None]) -> None:
        """Order every worker that may hold data of a request to forget the request. Call this method at most once for
        each request.

        Args:
            stages: Stages that the request needs. The order does not go to the workers of other stages.
            forgotten: Called when neither a worker nor a connection between workers holds data of the request any more.
        """

    @property
    def problem(self) -> str | None:
        """The reason why the pipeline cannot serve all requests now; None if it can serve all of them."""

    @property
    def warm(self) -> bool:
        """Whether a warm-up request has gone through every stage since the worker of the stage started. With replicas,
        one warm replica of each stage is enough.
        """

    @property
    def degraded(self) -> str | None:
        """The reason why at least one replica cannot serve requests now. None if all replicas can serve requests, or if
        no stages have replicas and the pipeline has no problem.
        """

    def live_replicas(self, stage: str) -> int:
        """Number of replicas of a stage that can take work now and are not being removed; at least 1."""

    @property
    def replicas(self) -> Sequence[ReplicaReport]:
        """The states of all replicas, for all groups of stages. Empty if there are no groups."""

    @property
    def routes(self) -> Sequence[RouteReport]:
        """The choices of replicas, for all groups of stages. Empty if there are no groups."""

    @property
    def workers(self) -> Mapping[str, WorkerReport]:
        """Maps the name of each worker to its state."""

    @property
    def stats(self) -> Mapping[str, StageStats]:
        """Maps the name of each stage to its latest counters. If a stage has replicas, their counters are added up."""

    @property
    def replica_stats(self) -> Iterable[tuple[str, int, StageStats]]:
        """Yields for each replica of each stage: the name of the stage, the number of the replica (0 for a stage
        without replicas), and the latest counters.
        """

    @property
    def edges(self) -> Iterable[EdgeStats]:
        """The latest counters of all edges in the graph."""

    @property
    def restarts(self) -> Mapping[str, int]:
        """Maps the name of each worker to the number of its restarts."""

    @property
    def pids(self) -> Mapping[str, int]:
        """Maps the name of each running worker to its process id. The id is valid on the host of the worker."""

    @property
    def usages(self) -> Mapping[str, ProcessUsage]:
        """Maps the name of each running worker to the resources that the worker uses. Workers whose use is not known
        are left out.
        """

    @property
    def hosts(self) -> Sequence[HostReport]:
        """The states of all hosts of the service except the main host; empty if the service runs on one host."""

    @property
    def connections_lost(self) -> int:
        """Number of lost connections since the service began. Only connections between processes on different hosts
        count.
        """
