"""Holds the main process's information about its workers: the state of each process, and which stages can work."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Literal, TypeAlias

from msgspec import Struct, field

from omni_pipeline.contract.plan import WorkerPlan
from omni_pipeline.errors import OmniError, unavailable
from omni_pipeline.supervision.hang_detection import Vitals
from omni_pipeline.supervision.restart_policy import Restarts
from omni_pipeline.wire.counters import EdgeStats
from omni_pipeline.wire.messages import Moved, StageStats
from omni_pipeline.wire.transport import endpoint

# Number of seconds after which a client should try again. `UNKNOWN_SECONDS` is for a worker whose loading time is
# unknown. `LOOP_SECONDS` is for a worker that keeps ending.
UNKNOWN_SECONDS = 5
LOOP_SECONDS = 30

State: TypeAlias = Literal["loading", "ready", "restarting", "unhealthy"]


class WorkerReport(Struct):
    """The report on one worker in `GET /health`.

    Attributes:
        state: ``restarting`` after the end of a process, until the next process is ready; ``unhealthy`` if the worker's
            processes keep ending.
        stages: Names of the stages that the worker runs.
        pid: Id of the worker's process; null if it has no process.
        restarts: Number of the worker's processes that have ended since the service began.
        last_end: The way in which the worker's latest process ended; null once the next process is ready.
        last_words: The last lines that the ended process wrote.
    """

    state: State
    stages: tuple[str, ...]
    pid: int | None
    restarts: int
    last_end: str | None
    last_words: list[str]


class WorkerState(Struct):
    """One worker and its process.

    Attributes:
        plan: The plan of the worker.
        address: Endpoint of the worker's process. While the worker has no process, endpoint of the next process.
        incarnation: Number of earlier processes of this worker.
        running: Whether the start of the process has been ordered and the process has not ended.
        pid: Id of the process, once it is known.
        ranks: Ids of the processes that share the worker's work, once it has loaded.
        ready: Whether the process has loaded.
        refusal: Reason why the process could not load, from its own message.
        vitals: Signs of life of the process, once its pid is known.
        stats: Counters of the process by stage, as of its latest heartbeat.
        edges: Counters of the edges that end in the process, as of its latest heartbeat.
        killed_for: Reason why the process is being killed; None if it is not being killed.
        moved: Epoch in which `address` was announced to the other workers; 0 if it was never announced, because
            the other workers received it when they started.
        heard: Epoch of the latest announcement that the process has received.
        last_end, last_words: As in `WorkerReport`.
        restarts: Counts the ends of the worker's processes.
        ordered: Time at which the start of the process was or will be ordered.
        load_seconds: Time that the worker's latest loading took.
    """

    plan: WorkerPlan
    address: str
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
    restarts: Restarts = field(default_factory=Restarts)
    ordered: float = 0.0
    load_seconds: float | None = None

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

    def became_ready(self, now: float, load_seconds: float) -> None:
        """Note that the process has loaded, which took `load_seconds`."""
        self.ready = True
        self.last_end = None
        self.last_words = []
        self.load_seconds = load_seconds
        self.restarts.ready(now)

    def hangs(self, how: str) -> None:
        """Note that the process hangs, and that it is being killed."""
        self.ready = False
        self.stats, self.edges = {}, []
        self.last_end = how

    def process_ended(self, how: str, words: list[str]) -> None:
        """Note that the process has ended, and forget its state."""
        self.running = self.ready = False
        self.pid = self.vitals = self.killed_for = None
        self.stats, self.edges = {}, []
        self.ranks = ()
        self.last_end = f"could not load: {self.refusal}" if self.refusal else how
        self.last_words = words

    def seconds_to_ready(self, now: float) -> float | None:
        """Seconds until the worker is probably ready; None if they cannot be estimated."""
        if self.load_seconds is None or self.restarts.looping:
            return None
        return max(self.ordered + self.load_seconds - now, 1.0)


class Roster:
    """The workers of one deployment.

    Raises:
        StartupError: the paths of the sockets would be too long.
    """

    def __init__(self, run_dir: str, plans: Iterable[WorkerPlan]) -> None:
        self._run_dir = run_dir
        self._workers = {plan.name: WorkerState(plan, endpoint(run_dir, plan.name, 0)) for plan in plans}
        self.moves = 0

    def __iter__(self) -> Iterator[WorkerState]:
        return iter(self._workers.values())

    def process(self, name: str, incarnation: int) -> WorkerState | None:
        """The worker called `name`, if its current process has this `incarnation` and has not ended; otherwise None."""
        worker = self._workers[name]
        return worker if worker.running and worker.incarnation == incarnation else None

    def addresses(self) -> dict[str, str]:
        """For each stage, the endpoint of the process that runs the stage."""
        return {stage: worker.address for worker in self for stage in worker.plan.stage_names}

    def move(self, worker: WorkerState) -> Moved:
        """Prepare for the worker's next process. Returns the message that announces the next process to the other
        workers.
        """
        worker.incarnation += 1
        worker.address = endpoint(self._run_dir, worker.name, worker.incarnation)
        worker.refusal = None
        self.moves += 1
        worker.moved = self.moves
        return Moved(worker.name, list(worker.plan.stage_names), worker.address, self.moves)

    # --- who can work ---

    def missing(self, stages: Collection[str] | None = None) -> list[WorkerState]:
        """The workers that cannot take work now, among the workers of `stages`. None means all workers."""
        return [
            worker
            for worker in self
            if (stages is None or any(stage in stages for stage in worker.plan.stage_names))
            and not self._reachable(worker)
        ]

    def _reachable(self, worker: WorkerState) -> bool:
        """Whether the worker has loaded, and all other ready workers know the address of its process."""
        return worker.ready and all(
            other.heard >= worker.moved for other in self if other.ready and other is not worker
        )

    def problem(self) -> str | None:
        """The reason why not all workers can take work now, or None."""
        missing = self.missing()
        for worker in missing:
            if worker.restarts.looping:
                return f"worker {worker.name} ended {worker.restarts.in_a_row} times in a row, and {worker.last_end}"
        for worker in missing:
            if worker.last_end is not None:
                return f"worker {worker.name} {worker.last_end}, and is being restarted"
        return f"still loading {', '.join(worker.name for worker in missing)}" if missing else None

    def refusal(self, missing: Collection[WorkerState], now: float) -> OmniError:
        """The error for a request that needs the `missing` workers."""
        looping = any(worker.restarts.looping for worker in missing)
        unknown = LOOP_SECONDS if looping else UNKNOWN_SECONDS
        seconds = max(worker.seconds_to_ready(now) or unknown for worker in missing)
        names = ", ".join(worker.name for worker in missing)
        return unavailable(
            f"The server cannot answer this request now; not ready: {names}.",
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
            )
            for worker in self
        }
