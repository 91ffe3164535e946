"""The main process's part of the pipeline. Sends requests to workers, passes on answers, and decides which requests can
be served now.

`Supervisor` implements `gateway.pipeline.Pipeline`, the interface that the gateway uses, on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from msgspec import UNSET

from omni_pipeline.contract.graph import COLLECTOR, GATEWAY
from omni_pipeline.contract.prompt_chain import UNKNOWN_PROMPT, PromptChain
from omni_pipeline.errors import ErrorInfo, connection_lost, internal, unavailable, worker_lost
from omni_pipeline.os_process import ProcessUsage, usage
from omni_pipeline.supervision.bindings import Bindings, RouteReport
from omni_pipeline.supervision.control_socket import ControlSocket
from omni_pipeline.supervision.forgetting import Forgetting, receivers_of
from omni_pipeline.supervision.mailbox import Mailbox
from omni_pipeline.supervision.plan import PipelinePlan
from omni_pipeline.supervision.prompt_loads import PromptLoads
from omni_pipeline.supervision.remote_hosts import HostReport, Member
from omni_pipeline.supervision.scaling import SCALING, ScaleOrder, Scaling
from omni_pipeline.supervision.worker_lifecycle import Fleet, StartProgress
from omni_pipeline.supervision.worker_state import OWN_HOST, ReplicaReport, WorkerReport, WorkerState, works_for
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.counters import Edges, EdgeStats
from omni_pipeline.wire.host_messages import ConnectionLost
from omni_pipeline.wire.messages import (
    Abort,
    Chunk,
    Claim,
    End,
    Failed,
    Forgotten,
    Granted,
    Paused,
    StageStats,
    Start,
    Work,
)
from omni_pipeline.wire.network import HostLink
from omni_pipeline.wire.trace_notes import MARK, Notes, Took
from omni_pipeline.wire.transport import MAIN, Received, make_run_dir


class Supervisor:
    """The workers of one deployment.

    The constructor starts the fork server, which imports modules while the caller prepares the rest of the service.
    Then call `start`. Use the object as a `gateway.pipeline.Pipeline` on the same event loop. At the end, call `stop`,
    even after an error.

    Args:
        plan: The workers to run.
        link: How to reach other hosts; None if the service runs on one host.
        members: The other hosts of the service, which have already joined.

    Raises:
        StartupError: the paths of the sockets would be too long.
    """

    def __init__(self, plan: PipelinePlan, link: HostLink | None = None, members: Collection[Member] = ()) -> None:
        self._plan = plan
        self._own_edges = Edges()
        self._prompts = PromptLoads(_cached_groups(plan), self._cache_tokens)
        self._bindings = Bindings(self._prompts, plan.routing.overload)
        self._warming: dict[str, list[tuple[WorkerState, int]]] = {}  # workers and incarnations of warm-up requests
        self._deliver: Callable[[Work | Failed], None] = _to_nobody
        self._lost: Callable[[frozenset[str], ErrorInfo, Collection[str] | None], None] = _to_nobody
        self._noted: Callable[[Notes], None] = _to_nobody
        self._claimed: Callable[[Claim, Callable[[], None]], None] = _grant_at_once
        self._paused: Callable[[Paused, Callable[[], None]], None] = _grant_at_once
        self._run_dir = make_run_dir()
        try:
            codec = Codec(plan.graph.body_types())
            stages = {worker.name: worker.stage_names for worker in plan.workers}
            self._forgetting = Forgetting(receivers_of(stages, codec.edges))
            self._mailbox = Mailbox(self._run_dir, codec, self._fail_unreadable, link)
            self._fleet = Fleet(plan, self._run_dir, self._mailbox, self._report_loss, link, members)
        except BaseException:
            shutil.rmtree(self._run_dir)
            raise
        self._roster = self._fleet.roster
        scaling = Scaling(plan.workers, self._fleet, self._bindings)
        self._control = ControlSocket(self._run_dir, SCALING, ScaleOrder, scaling.carry_out)
        self._mailbox.register(Start, self._take_work)
        self._mailbox.register(Chunk, self._take_work)
        self._mailbox.register(End, self._take_work)
        self._mailbox.register(Failed, self._take_failure)
        self._mailbox.register(Notes, self._take_notes)
        self._mailbox.register(Forgotten, self._take_forgotten)
        self._mailbox.register(ConnectionLost, self._take_lost_connection)
        self._mailbox.when_lost(self._report_lost_connection)
        self.connections_lost = 0
        self._mailbox.register(Claim, self._take_claim)
        self._mailbox.register(Paused, self._take_pause)

    # --- life ---

    async def start(self, model_path: str, progress: Callable[[StartProgress], None] | None = None) -> None:
        """Start every worker and wait until all are ready.

        Args:
            model_path: Directory of the checkpoint.
            progress: Called when the libraries have been imported, and each time a worker is ready.

        Raises:
            StartupError: a worker could not load. The message names the worker and gives the reason. Call `stop` to
                clean up.
        """
        self._mailbox.open()
        await self._control.open()
        await self._fleet.start(model_path, progress or _to_nobody)

    async def stop(self, patience: float = 10.0) -> None:
        """End every process and remove every file, in any state.

        Args:
            patience: Number of seconds in which workers may exit by themselves before they are killed.
        """
        self._control.close()
        try:
            await self._fleet.stop(patience)
        finally:
            self._fleet.close()
            self._mailbox.close()
            shutil.rmtree(self._run_dir, ignore_errors=True)

    @property
    def address(self) -> str:
        """Endpoint of the main process for other hosts; empty if the service runs on one host."""
        return self._mailbox.remote_address

    def join(self, member: Member) -> None:
        """Add a host that has left the service and has joined again."""
        self._fleet.join(member)

    def kill(self) -> None:
        """Kill every worker now. If `stop` is waiting for the workers to end, `stop` can then continue."""
        self._fleet.kill()

    # --- the pipeline ---

    def connect(
        self,
        deliver: Callable[[Work | Failed], None],
        lost: Callable[[frozenset[str], ErrorInfo, Collection[str] | None], None],
    ) -> None:
        """Set the receivers of answers and losses; see `gateway.pipeline.Pipeline`."""
        self._deliver = deliver
        self._lost = lost

    def trace(self, noted: Callable[[Notes], None]) -> None:
        """Set the receiver of notes about requests; see `gateway.pipeline.Pipeline`."""
        self._noted = noted

    def budget(self, claimed: Callable[[Claim, Callable[[], None]], None]) -> None:
        """Set the receiver of every `wire.messages.Claim`, with which a stage asks for memory; see
        `gateway.pipeline.Pipeline`. While there is no receiver, every `Claim` is granted at once.
        """
        self._claimed = claimed

    def pace(self, paused: Callable[[Paused, Callable[[], None]], None]) -> None:
        """Set the receiver of pauses; see `gateway.pipeline.Pipeline`. While there is no receiver, each stage can
        continue at once.
        """
        self._paused = paused

    async def wait_for(self, stages: Collection[str] | None, seconds: float | None) -> None:
        """Wait until the given stages can work; see `gateway.pipeline.Pipeline`."""
        if seconds is not None:
            self._check_patience(stages, seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.until(lambda: self._fleet.stopping or not self._roster.missing(stages))
        self._check(stages)

    def _check_patience(self, stages: Collection[str] | None, seconds: float) -> None:
        """Refuse a request now if the stages will probably not be ready within `seconds`."""
        now = asyncio.get_running_loop().time()
        missing = self._roster.missing(stages)
        expected = [worker.seconds_to_ready(now) for worker in missing]
        if any(each is None or each > seconds for each in expected):
            raise self._roster.refusal(missing, now)

    def _check(self, stages: Collection[str] | None) -> None:
        """Refuse a request if one of `stages` cannot work now."""
        if self._fleet.stopping:
            raise unavailable("The server is shutting down.", code="shutting_down")
        missing = self._roster.missing(stages)
        if missing:
            raise self._roster.refusal(missing, asyncio.get_running_loop().time())

    async def cold(self) -> Mapping[str, int]:
        """Wait until some worker needs a warm-up request; see `gateway.pipeline.Pipeline`."""
        roster, fleet = self._roster, self._fleet

        def ready() -> bool:
            if fleet.starting and roster.absent():
                return False
            return fleet.stopping or roster.cold() is not None

        await self.until(ready)
        self._check(())
        return roster.cold() or {}

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
        """Send a request body to the entry stage; see `gateway.pipeline.Pipeline`."""
        self._check(stages)
        live = self._roster.live(stages)
        fixed = warming if warming is not None else self._bindings.of(beside)
        if any(group in fixed and fixed[group] not in replicas for group, replicas in live.items()):
            raise self._roster.refusal(self._roster.absent(), asyncio.get_running_loop().time())
        # The first request of a new process may take long. So a new process first gets a warm-up request. Until then,
        # the process gets other requests only if no other replica can accept these requests.
        preferred = {group: self._preferred(group, replicas) for group, replicas in live.items()}
        bound = self._bindings.bind(request_id, preferred, fixed, chain)
        if warming is not None:
            passed = (worker for worker in self._roster if works_for(worker.plan, bound))
            self._warming[request_id] = [(worker, worker.incarnation) for worker in passed]
        entry = self._plan.graph.entry
        start = Start(request_id, GATEWAY, entry, body, bound or UNSET)
        try:
            self._mailbox.send(start, self._roster.address(entry, bound))
        except BaseException:
            self.release(request_id)
            raise

    def _preferred(self, group: str, live: Mapping[int, bool]) -> Sequence[int]:
        """The replicas in `live` that a new request may use.

        They are chosen in two steps. The first step leaves out replicas that are being removed. The second step leaves
        out replicas that have not answered a warm-up request. A step that would leave out all replicas is skipped.
        """
        staying = [replica for replica in live if not self._roster.leaving(group, replica)] or list(live)
        return [replica for replica in staying if live[replica]] or staying

    @property
    def compares_prompts(self) -> bool:
        """Whether the prompt of a new request matters; see `gateway.pipeline.Pipeline`."""
        return any(
            len(replicas) > 1 and group in self._prompts.groups for group, replicas in self._roster.replicas().items()
        )

    def count_prompt(self, request_id: str, prompt_tokens: int, cached_tokens: int) -> None:
        """Note the real length of a prompt; see `gateway.pipeline.Pipeline`."""
        self._prompts.count(request_id, prompt_tokens, cached_tokens)

    def _cache_tokens(self, group: str, replica: int) -> int | None:
        """The size of a replica's prefix cache in tokens; None if the replica has not reported it yet."""
        for worker in self._roster.replicas().get(group, {}).get(replica, ()):
            for name, stats in worker.stats.items():
                size = stats.extra.get(self._plan.graph.stage(name).prefix_cache)
                if size is not None:
                    return int(size)
        return None

    def release(self, request_id: str) -> None:
        """Note that the answer to a request is complete; see `gateway.pipeline.Pipeline`."""
        self._bindings.release(request_id)
        for worker, incarnation in self._warming.pop(request_id, ()):
            worker.warm = worker.warm or (worker.ready and worker.incarnation == incarnation)
        # a task in `until` may wait until this request has ended: the last request or the warm-up request of a replica
        self._fleet.changed()

    def abort(self, request_id: str, stages: frozenset[str], forgotten: Callable[[], None]) -> None:
        """Make the workers forget a request; see `gateway.pipeline.Pipeline`."""
        bound = dict(self._bindings.of(request_id))
        workers = {
            worker.name: worker.address_from(OWN_HOST)
            for worker in self._roster
            if worker.ready and not stages.isdisjoint(worker.plan.stage_names) and works_for(worker.plan, bound)
        }
        self._warming.pop(request_id, None)
        self._bindings.release(request_id)
        self._fleet.changed()
        self._mailbox.send(Abort(request_id, bound=bound or UNSET), *workers.values())
        self._forgetting.begin(request_id, workers.keys(), forgotten)

    @property
    def problem(self) -> str | None:
        """The reason why the pipeline cannot serve all requests now; None if there is no such reason."""
        return "the server is shutting down" if self._fleet.stopping else self._roster.problem()

    @property
    def degraded(self) -> str | None:
        """The reason why some replica cannot serve requests now; None if all replicas can serve requests."""
        return self._roster.degraded()

    @property
    def warm(self) -> bool:
        """Whether every stage has handled a warm-up request since its worker started."""
        return self._roster.warm

    @property
    def workers(self) -> Mapping[str, WorkerReport]:
        """A report on each worker, by name."""
        return self._roster.reports()

    @property
    def stats(self) -> Mapping[str, StageStats]:
        """The latest counters of each stage, by name and in graph order. Stages whose worker has no process are left
        out. If a stage has replicas, the counters are the sums over all replicas.
        """
        known: dict[str, StageStats] = {}
        for name, _, stats in self.replica_stats:
            known[name] = known[name].plus(stats) if name in known else stats
        return {name: known[name] for name in self._plan.graph.stage_names if name in known}

    @property
    def replica_stats(self) -> Iterable[tuple[str, int, StageStats]]:
        """For each replica of each stage, in graph order: the name of the stage, the number of the replica, and its
        latest counters.
        """
        order = self._plan.graph.stage_names
        known = ((name, worker.plan.replica, stats) for worker in self._roster for name, stats in worker.stats.items())
        return sorted(known, key=lambda each: (order.index(each[0]), each[1]))

    @property
    def replicas(self) -> Sequence[ReplicaReport]:
        """A report on each replica of each group of stages."""
        return [
            ReplicaReport(
                group=group,
                replica=replica,
                up=all(map(self._roster.reachable, workers)),
                bound=len(self._bindings.requests(group, replica)),
            )
            for group, replicas in self._roster.replicas().items()
            for replica, workers in replicas.items()
        ]

    @property
    def routes(self) -> Sequence[RouteReport]:
        """A report on the choices of replicas in each group."""
        return self._bindings.routes()

    def live_replicas(self, stage: str) -> int:
        """Number of replicas of a stage that can accept requests now; see `gateway.pipeline.Pipeline`."""
        staying = (
            [replica for replica in live if not self._roster.leaving(group, replica)]
            for group, live in self._roster.live({stage}).items()
        )
        return max([1, *map(len, staying)])

    @property
    def edges(self) -> Iterable[EdgeStats]:
        """The latest counters of each edge that ends in a running worker or in the main process."""
        return chain(*(worker.edges for worker in self._roster), self._own_edges.all())

    @property
    def restarts(self) -> Mapping[str, int]:
        """Number of restarts of each worker, by name."""
        return {worker.name: worker.restarts.total for worker in self._roster}

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids of the workers that run, by name."""
        return self._fleet.pids

    @property
    def launcher_pid(self) -> int:
        """Process id of the fork server on this host."""
        return self._fleet.launcher_pid

    @property
    def usages(self) -> Mapping[str, ProcessUsage]:
        """The resources that each worker's process uses, by the worker's name."""
        found = {}
        for worker in self._roster:
            host, pid = worker.plan.host, worker.pid
            if pid is not None and (used := self._fleet.hosts.usage(host, pid) if host else usage(pid)) is not None:
                found[worker.name] = used
        return found

    @property
    def hosts(self) -> Sequence[HostReport]:
        """Reports on all hosts of the service except the main host."""
        return self._fleet.host_reports()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds. The condition is checked whenever a worker has changed or has sent its
        counters.
        """
        await self._fleet.until(condition)

    # --- messages from workers about requests ---

    def _take_work(self, message: Work, received: Received) -> None:
        taken = time.monotonic()
        self._own_edges.add(message.source, message.target, received.size, taken - received.sent)
        self._prompts.computed(message.request_id)
        self._deliver(message)
        if self._plan.trace.on or message.request_id.endswith(MARK):
            took = Took(message.request_id, message.source, message.target, received.sent, taken, time.monotonic())
            self._noted(Notes(MAIN, taken, [took], []))

    def _take_failure(self, message: Failed, _: Received) -> None:
        self._deliver(message)

    def _take_notes(self, message: Notes, received: Received) -> None:
        if received.host:
            message = message.shifted(self._fleet.hosts.offset(received.host))
        self._noted(message)

    def _take_forgotten(self, message: Forgotten, _: Received) -> None:
        self._forgetting.answer(message)

    def _take_claim(self, message: Claim, _: Received) -> None:
        self._claimed(message, functools.partial(self._grant, message))

    def _take_pause(self, message: Paused, _: Received) -> None:
        self._paused(message, functools.partial(self._grant, message))

    def _grant(self, asked: Claim | Paused) -> None:
        bound = self._bindings.of(asked.request_id)
        self._mailbox.send(Granted(asked.request_id, asked.source), self._roster.address(asked.source, bound))

    # --- connections to other hosts ---

    def _take_lost_connection(self, message: ConnectionLost, received: Received) -> None:
        """Handle a worker's report that its connection to another process has ended. Ends the requests that use both
        the worker and this other process.
        """
        sender = self._fleet.sender(message, received)
        if sender is None:
            return
        receiver = next(
            (
                worker
                for worker in self._roster
                if message.stages
                and worker.plan.replica == message.replica
                and message.stages[0] in worker.plan.stage_names
            ),
            None,
        )
        if message.stages and receiver is None:  # the worker at the other end has been removed
            return
        self._forgetting.end_connection(sender.name, receiver.name if receiver is not None else "")
        self._lose_connection(sender, receiver)

    def _report_lost_connection(self, address: str) -> None:
        """Handle the end of a connection over which the main process sends."""
        if self._fleet.hosts.connection_lost(address):
            return
        for worker in self._roster:
            if worker.running and worker.address_from(OWN_HOST) == address:
                self._forgetting.end_connection("", worker.name)
                self._lose_connection(None, worker)

    def _lose_connection(self, sender: WorkerState | None, receiver: WorkerState | None) -> None:
        """End the requests whose messages may have been lost between two processes. If an argument is None, it means
        the main process.
        """
        self.connections_lost += 1
        plans = [worker.plan for worker in (sender, receiver) if worker is not None]
        used = [set(self._bindings.requests(plan.group, plan.replica)) for plan in plans if plan.group]
        requests = frozenset(set.intersection(*used)) if used else None
        names = [worker.name if worker is not None else MAIN for worker in (sender, receiver)]
        self._lost(frozenset(plans[-1].stage_names), connection_lost(*names).info, requests)

    def _fail_unreadable(self, request_id: str) -> None:
        error = internal("An answer of the pipeline could not be read.")
        self._deliver(Failed(request_id, COLLECTOR, error.info))

    def _report_loss(self, worker: WorkerState) -> None:
        if not worker.running:  # a process that hangs still has data of requests until it has been killed
            self._forgetting.end_worker(worker.name)
        plan = worker.plan
        if any(self._plan.graph.stage(name).prefix_cache for name in plan.stage_names):
            self._prompts.clear(plan.group, plan.replica)
        requests = frozenset(self._bindings.requests(plan.group, plan.replica)) if plan.group else None
        self._lost(frozenset(plan.stage_names), worker_lost(worker.name).info, requests)


def _cached_groups(plan: PipelinePlan) -> set[str]:
    """The groups in which the choice of a replica depends on the replicas' prefix caches."""
    if not plan.routing.by_prefix:
        return set()
    cached = {stage.name for stage in plan.graph.stages if stage.prefix_cache}
    return {worker.group for worker in plan.workers if worker.group and not cached.isdisjoint(worker.stage_names)}


def _grant_at_once(_: Claim | Paused, grant: Callable[[], None]) -> None:
    grant()


def _to_nobody(*_: object) -> None:
    """Ignores a message, because no receiver has been set."""
