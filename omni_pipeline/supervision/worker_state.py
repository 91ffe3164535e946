"""Keeps the main process's information about its workers: the state of each process, and which stages can work."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Literal, TypeAlias

from msgspec import Struct, field

from omni_pipeline.contract.plan import WorkerPlan
from omni_pipeline.errors import OmniError, unavailable
from omni_pipeline.supervision.hang_detection import Vitals
from omni_pipeline.supervision.restart_timing import Restarts
from omni_pipeline.wire.counters import EdgeStats
from omni_pipeline.wire.messages import Moved, StageStats
from omni_pipeline.wire.transport import endpoint

# Number of seconds after which a client should try again. `UNKNOWN_SECONDS` applies if the missing worker's loading
# time is unknown, and `LOOP_SECONDS` applies if the missing worker ends again and again.
UNKNOWN_SECONDS = 5
LOOP_SECONDS = 30

# The name of the main process's own host in `WorkerPlan.host`.
OWN_HOST = ""

State: TypeAlias = Literal["loading", "ready", "restarting", "unhealthy"]


class Phase(Enum):
    """Whether a worker is being added or removed while the server runs."""

    JOINING = "joining"  # the worker has not answered a warm-up request yet; if its process ends, it is not restarted
    STAYING = "staying"
    LEAVING = "leaving"  # the worker gets no new requests, and ends when its requests have ended


class WorkerReport(Struct):
    """The report on one worker in `GET /health`.

    Attributes:
        state: ``restarting`` from the end of a process until the next process is ready. ``unhealthy`` if the worker's
            processes end again and again.
        stages: Names of the stages that the worker runs.
        pid: Id of the worker's process; null if it has no process.
        restarts: Number of the worker's processes that have ended since the service began.
        last_end: How the worker's latest process ended; null when the next process is ready.
        last_words: The last lines that the ended process wrote.
        previous_end: How the process before the current process ended; null if there was no such process.
        host: Name of the host on which the worker runs; empty for the host of the main process.
    """

    state: State
    stages: tuple[str, ...]
    pid: int | None
    restarts: int
    last_end: str | None
    last_words: list[str]
    previous_end: str | None = None
    host: str = ""


class ReplicaReport(Struct, frozen=True):
    """One replica of a group of stages.

    Attributes:
        up: Whether all workers of the replica can accept requests.
        bound: Number of open requests that use the replica.
    """

    group: str
    replica: int
    up: bool
    bound: int


class WorkerState(Struct):
    """One worker and its process.

    An *epoch* is the number of a `wire.messages.Moved`, the message that announces a new address to the workers.

    Attributes:
        plan: The plan of the worker.
        address: Endpoint of the worker's process on the process's own host. While the worker has no process, endpoint
            of the next process.
        remote_address: Endpoint of the worker's process for other hosts. Empty until the process has loaded. Always
            empty if the service runs on one host.
        incarnation: Number of earlier processes of this worker.
        running: Whether the start of the process has been ordered, and the process has not ended since then.
        pid: Id of the process, once it is known.
        ranks: Ids of the processes that share the worker's work, once it has loaded.
        ready: Whether the process has loaded.
        refusal: Reason why the process could not load, from the process's own message.
        vitals: Signs of life of the process, once its pid is known.
        stats: Counters of the process by stage, from its latest heartbeat.
        edges: Counters of the edges that end in the process, from its latest heartbeat.
        killed_for: Reason why the process is being killed; None if it is not being killed.
        moved: Epoch in which the endpoint was announced to the other workers. 0 if it was never announced, because the
            other workers received it when they started.
        heard: Epoch of the latest announcement that the process has received.
        last_end, last_words, previous_end: The same as in `WorkerReport`.
        restarts: Counts the ends of the worker's processes.
        ordered: Time at which the start of the process was or will be ordered.
        load_seconds: Time that the worker's latest loading took.
        warm: Whether the process has answered a warm-up request.
        phase: Whether the worker is being added or removed while the server runs.
        host_lost: Whether the worker's host has left the service. The worker's next process can start only when the
            host has joined again.
    """

    plan: WorkerPlan
    address: str
    remote_address: str = ""
    incarnation: int = 0
    running: bool = False
    pid: int | None = None
    ranks: Collection[int] = ()
    ready: bool = False
    refusal: str | None = None
    vitals: Vitals | None = None
    stats: dict[str, StageStats] = {}
    edges: list[EdgeStats] = []
    killed_for: str | None = None
    moved: int = 0
    heard: int = 0
    last_end: str | None = None
    last_words: list[str] = []
    previous_end: str | None = None
    restarts: Restarts = field(default_factory=Restarts)
    ordered: float = 0.0
    load_seconds: float | None = None
    warm: bool = False
    phase: Phase = Phase.STAYING
    host_lost: bool = False

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def state(self) -> State:
        if self.ready:
            return "ready"
        if self.restarts.looping:
            return "unhealthy"
        return "loading" if self.last_end is None else "restarting"

    def address_from(self, host: str) -> str:
        """Endpoint of the worker's process for a process on `host`; empty if it is not known yet."""
        return self.address if self.plan.host == host else self.remote_address

    def became_ready(self, now: float, load_seconds: float) -> None:
        """Note that the process has loaded, which took `load_seconds`."""
        self.ready = True
        self.previous_end, self.last_end = self.last_end, None
        self.last_words = []
        self.load_seconds = load_seconds
        self.restarts.ready(now)

    def hangs(self, how: str) -> None:
        """Note that the process hangs, and that it is being killed."""
        self.ready = self.warm = False
        self.stats, self.edges = {}, []
        self.last_end = how

    def process_ended(self, how: str, words: list[str]) -> None:
        """Note that the process has ended, and forget its state."""
        self.running = self.ready = self.warm = False
        self.pid = self.vitals = self.killed_for = None
        self.remote_address = ""
        self.stats, self.edges = {}, []
        self.ranks = ()
        self.last_end = f"could not load: {self.refusal.rstrip('.')}" if self.refusal else how
        self.last_words = words

    def seconds_to_ready(self, now: float) -> float | None:
        """Estimated number of seconds until the worker is ready; None if there is no estimate."""
        if self.load_seconds is None or self.restarts.looping or self.host_lost:
            return None
        return max(self.ordered + self.load_seconds - now, 1.0)


class Roster:
    """The workers of one deployment.

    Args:
        run_dirs: The run directory of each host, by the host's name.

    Raises:
        StartupError: the paths of the sockets would be too long.
    """

    def __init__(self, run_dirs: dict[str, str], plans: Iterable[WorkerPlan]) -> None:
        self._run_dirs = run_dirs
        self._workers = {plan.name: WorkerState(plan, self._endpoint(plan, 0)) for plan in plans}
        self._removed: dict[str, int] = {}  # the next incarnation of each worker that has been removed
        self.moves = 0

    def __iter__(self) -> Iterator[WorkerState]:
        return iter(self._workers.values())

    def process(self, name: str, incarnation: int) -> WorkerState | None:
        """The worker called `name`, if its current process has this `incarnation` and has not ended; otherwise None."""
        worker = self._workers.get(name)
        return worker if worker is not None and worker.running and worker.incarnation == incarnation else None

    def __contains__(self, worker: WorkerState) -> bool:
        return self._workers.get(worker.name) is worker

    def add(self, plan: WorkerPlan) -> WorkerState:
        """Add a worker while the other workers run. Then announce the worker to the other workers."""
        incarnation = self._removed.get(plan.name, 0)
        worker = WorkerState(plan, self._endpoint(plan, incarnation), incarnation=incarnation, phase=Phase.JOINING)
        self._workers[plan.name] = worker
        self.begin_epoch(worker)
        return worker

    def remove(self, worker: WorkerState) -> None:
        """Remove a worker whose process has ended. Then announce this to the other workers."""
        del self._workers[worker.name]
        self._removed[worker.name] = worker.incarnation + 1
        self.begin_epoch(worker)

    def addresses(self, seen_from: str) -> dict[str, dict[int, str]]:
        """For each stage, the known endpoints of the processes that run the stage, by the number of the replica.

        Args:
            seen_from: The host of the process that will use the endpoints.
        """
        addresses: dict[str, dict[int, str]] = {}
        for worker in self:
            address = worker.address_from(seen_from)
            for stage in worker.plan.stage_names:
                replicas = addresses.setdefault(stage, {})
                if address:
                    replicas[worker.plan.replica] = address
        return addresses

    def address(self, stage: str, bound: Mapping[str, int]) -> str:
        """The endpoint to which the main process sends the messages of a request for `stage`. `bound` contains the
        replicas that the request uses. Raises LookupError if no worker runs the stage for these replicas.
        """
        for worker in self:
            if stage in worker.plan.stage_names and works_for(worker.plan, bound):
                return worker.address_from(OWN_HOST)
        raise LookupError(f"no worker runs {stage}")

    def groups(self) -> dict[str, str]:
        """For each stage in a replicated group of stages: the name of the group."""
        return {stage: worker.plan.group for worker in self if worker.plan.group for stage in worker.plan.stage_names}

    def replicas(self) -> dict[str, dict[int, list[WorkerState]]]:
        """The workers of each replica of each group, by the group's name."""
        found: dict[str, dict[int, list[WorkerState]]] = {}
        for worker in self:
            if worker.plan.group:
                found.setdefault(worker.plan.group, {}).setdefault(worker.plan.replica, []).append(worker)
        return found

    def move(self, worker: WorkerState) -> None:
        """Prepare for the worker's next process. Then announce the next process to the other workers."""
        worker.incarnation += 1
        worker.address = self._endpoint(worker.plan, worker.incarnation)
        worker.refusal = None
        self.begin_epoch(worker)

    def place(self, worker: WorkerState) -> None:
        """Compute the endpoint of the worker's next process again, after the host's run directory has changed."""
        worker.address = self._endpoint(worker.plan, worker.incarnation)

    def begin_epoch(self, worker: WorkerState) -> None:
        """Note that the worker's endpoint has changed, and has to be announced to the other workers."""
        self.moves += 1
        worker.moved = self.moves

    def announcement(self, worker: WorkerState, seen_from: str) -> Moved:
        """The message that announces a worker's endpoint, or its removal, to the processes on the host `seen_from`."""
        address = worker.address_from(seen_from) if worker in self else ""
        return Moved(worker.name, list(worker.plan.stage_names), address, worker.moved, worker.plan.replica)

    def _endpoint(self, plan: WorkerPlan, incarnation: int) -> str:
        return endpoint(self._run_dirs[plan.host], plan.name, incarnation)

    # --- who can work ---

    def missing(self, stages: Collection[str] | None = None) -> list[WorkerState]:
        """The workers that cannot accept requests now, although one of `stages` needs them; empty if all of `stages`
        can work. If `stages` is None, considers all stages.

        A stage with replicas can work if at least one replica can accept requests. If no replica can accept requests,
        the result has the missing workers of one replica: the replica that can probably work soonest (see
        `_hopelessness`).
        """
        replicas: dict[tuple[str, str], dict[int, list[WorkerState]]] = {}
        for worker in self:
            if _runs(worker, stages) and worker.phase is not Phase.LEAVING:
                key = worker.plan.group, "" if worker.plan.group else worker.name
                replicas.setdefault(key, {}).setdefault(worker.plan.replica, []).append(worker)
        missing: list[WorkerState] = []
        for workers in replicas.values():
            lacking = [[worker for worker in own if not self.reachable(worker)] for own in workers.values()]
            nearest = min(lacking, key=_hopelessness)
            missing += nearest
        return missing

    def absent(self) -> list[WorkerState]:
        """All workers that cannot accept requests now, even if other replicas of their stages can. Workers that are
        being added or removed are not included.
        """
        return [worker for worker in self if worker.phase is Phase.STAYING and not self.reachable(worker)]

    def leaving(self, group: str, replica: int) -> bool:
        """Whether a replica is being removed."""
        return any(worker.phase is Phase.LEAVING for worker in self.replicas().get(group, {}).get(replica, ()))

    def live(self, stages: Collection[str] | None) -> dict[str, dict[int, bool]]:
        """For each group that has some of `stages`: the replicas that can accept requests for these stages now. The
        value of a replica is true if its workers have answered a warm-up request.

        Args:
            stages: Names of stages; None means all stages.
        """
        found: dict[str, dict[int, bool]] = {}
        for group, replicas in self.replicas().items():
            for replica, workers in replicas.items():
                needed = [worker for worker in workers if _runs(worker, stages)]
                if needed:
                    live = found.setdefault(group, {})
                    if all(map(self.reachable, needed)):
                        live[replica] = all(worker.warm for worker in needed)
        return found

    def cold(self) -> dict[str, int] | None:
        """The replicas for the next warm-up request, by group. None if every worker that can accept requests has
        answered a warm-up request. Also None if a stage cannot work.

        The result contains only groups with a replica that has not answered a warm-up request.
        """
        staying = [worker for worker in self if worker.phase is not Phase.LEAVING]
        waiting = [worker for worker in staying if self.reachable(worker) and not worker.warm]
        if not waiting or self.missing():
            return None
        through: dict[str, int] = {}
        for group, replicas in self.replicas().items():
            for replica, workers in replicas.items():
                if all(map(self.reachable, workers)) and any(worker in waiting for worker in workers):
                    through.setdefault(group, replica)
        alone = any(not worker.plan.group for worker in waiting)
        return through if through or alone else None

    @property
    def warm(self) -> bool:
        """Whether every stage has a replica that can accept requests and has answered a warm-up request."""
        replicas = self.replicas().values()
        return all(worker.warm for worker in self if not worker.plan.group) and all(
            any(all(worker.warm for worker in workers) for workers in group.values()) for group in replicas
        )

    def reachable(self, worker: WorkerState) -> bool:
        """Whether the worker has loaded, and all other ready workers have received the address of its process."""
        return worker.ready and all(
            other.heard >= worker.moved
            for other in self
            if other.ready and other is not worker and not _apart(worker.plan, other.plan)
        )

    def problem(self) -> str | None:
        """The reason why some stage cannot accept requests now, or None."""
        return _reason(self.missing())

    def degraded(self) -> str | None:
        """The reason why a worker cannot accept requests, or has not answered a warm-up request. None if there is no
        such worker.
        """
        cold = [worker.name for worker in self if worker.phase is Phase.STAYING and not worker.warm]
        unwarmed = f"no warm-up request has gone through {', '.join(cold)} yet" if cold else None
        return _reason(self.absent()) or unwarmed

    def refusal(self, missing: Collection[WorkerState], now: float) -> OmniError:
        """The error for a request that needs the `missing` workers."""
        looping = any(worker.restarts.looping for worker in missing)
        unknown = LOOP_SECONDS if looping else UNKNOWN_SECONDS
        seconds = max(worker.seconds_to_ready(now) or unknown for worker in missing)
        names = ", ".join(worker.name for worker in missing)
        return unavailable(
            f"The server cannot answer this request now, because these workers are not ready: {names}.",
            code="not_ready",
            retry_after=math.ceil(seconds),
        )

    def reports(self) -> dict[str, WorkerReport]:
        """A report on each worker, by name."""
        return {
            worker.name: WorkerReport(
                state=worker.state,
                stages=worker.plan.stage_names,
                pid=worker.pid,
                restarts=worker.restarts.total,
                last_end=worker.last_end,
                last_words=worker.last_words,
                previous_end=worker.previous_end,
                host=worker.plan.host,
            )
            for worker in self
        }


def works_for(plan: WorkerPlan, bound: Mapping[str, int]) -> bool:
    """Whether a worker may work for a request that uses the replicas in `bound` (by group). Also true if `bound`
    contains no replica of the worker's group.
    """
    return not plan.group or bound.get(plan.group, plan.replica) == plan.replica


def _hopelessness(lacking: Sequence[WorkerState]) -> tuple[bool, int]:
    """A sort key for replicas. A replica with a smaller key can probably work sooner. `lacking` are the missing workers
    of a replica. The first part of the key is true if one of these workers loops or has lost its host. The second part
    is the number of these workers.
    """
    return any(worker.restarts.looping or worker.host_lost for worker in lacking), len(lacking)


def _runs(worker: WorkerState, stages: Collection[str] | None) -> bool:
    """Whether a worker runs one of `stages`. None means all stages."""
    return stages is None or any(stage in stages for stage in worker.plan.stage_names)


def _apart(one: WorkerPlan, other: WorkerPlan) -> bool:
    """Whether two workers are in different replicas of one group, so that they never send messages to each other."""
    return one.group == other.group != "" and one.replica != other.replica


def _reason(lacking: Collection[WorkerState]) -> str | None:
    """The reason why the workers in `lacking` cannot accept requests; None if `lacking` is empty."""
    for worker in lacking:
        if worker.restarts.looping:
            row = worker.restarts.in_a_row
            return f"worker {worker.name} ended {row} times in a row; the last time, it {worker.last_end}"
    for worker in lacking:
        if worker.host_lost:
            return f"worker {worker.name} waits for the host {worker.plan.host}, which has left"
    for worker in lacking:
        if worker.last_end is not None:
            return f"worker {worker.name} {worker.last_end}, and is being restarted"
    return f"still loading {', '.join(worker.name for worker in lacking)}" if lacking else None
