"""What the main process knows about its workers: the state of each one's process, and which stages can work."""

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

# When a client is to try again: where a worker's time to load is not known, and where it ends again and again.
UNKNOWN_SECONDS = 5
LOOP_SECONDS = 30

State: TypeAlias = Literal["loading", "ready", "restarting", "unhealthy"]


class WorkerReport(Struct):
    """One worker as `GET /health` shows it.

    Attributes:
        state: ``restarting`` after an end, until its next process is ready; ``unhealthy`` when the ends are a loop.
        stages: What it runs.
        pid: Its process, if it has one.
        restarts: Ends since the service began.
        last_end: How its last process ended, while no other has become ready.
        last_words: The last lines that process wrote.
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
        plan: What it runs.
        address: Endpoint of its process, or of its next one.
        incarnation: How many processes it had before that one.
        running: Whether the process has been ordered and has not ended.
        pid: Of the process, once it is known.
        ranks: Processes under it that share its work, once it has loaded.
        ready: Whether the process has loaded.
        refusal: Why the process could not load, in its own words.
        vitals: Signs of life of the process, once its pid is known.
        stats: Counters of the process by stage, as of its latest heartbeat.
        edges: Counters of the edges that end in the process, likewise.
        killed_for: Why the process is being killed, if it is.
        moved: Epoch in which `address` was announced to the other workers; 0 if they knew it from their start.
        heard: Latest epoch of which the process has taken in the announcement.
        last_end, last_words: As in `WorkerReport`.
        restarts: Its ends.
        ordered: When the process was ordered, or will be.
        load_seconds: How long it took to load the last time.
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
        """Its process has loaded, which took `load_seconds`."""
        self.ready = True
        self.last_end = None
        self.last_words = []
        self.load_seconds = load_seconds
        self.restarts.ready(now)

    def hangs(self, how: str) -> None:
        """Its process is of no use any more, and will end."""
        self.ready = False
        self.stats, self.edges = {}, []
        self.last_end = how

    def process_ended(self, how: str, words: list[str]) -> None:
        """It has no process any more; what was known about the process is gone with it."""
        self.running = self.ready = False
        self.pid = self.vitals = self.killed_for = None
        self.stats, self.edges = {}, []
        self.ranks = ()
        self.last_end = f"could not load: {self.refusal}" if self.refusal else how
        self.last_words = words

    def seconds_to_ready(self, now: float) -> float | None:
        """How long it will probably take until it serves; None if that is not known."""
        if self.load_seconds is None or self.restarts.looping:
            return None
        return max(self.ordered + self.load_seconds - now, 1.0)


class Roster:
    """The workers of one deployment.

    Raises:
        StartupError: there is no place for the sockets.
    """

    def __init__(self, run_dir: str, plans: Iterable[WorkerPlan]) -> None:
        self._run_dir = run_dir
        self._workers = {plan.name: WorkerState(plan, endpoint(run_dir, plan.name, 0)) for plan in plans}
        self.moves = 0

    def __iter__(self) -> Iterator[WorkerState]:
        return iter(self._workers.values())

    def process(self, name: str, incarnation: int) -> WorkerState | None:
        """The worker, if its process of that number has not ended."""
        worker = self._workers[name]
        return worker if worker.running and worker.incarnation == incarnation else None

    def addresses(self) -> dict[str, str]:
        """Endpoint of the process that runs each stage."""
        return {stage: worker.address for worker in self for stage in worker.plan.stage_names}

    def move(self, worker: WorkerState) -> Moved:
        """Prepare for the worker's next process. Returns the announcement for the others."""
        worker.incarnation += 1
        worker.address = endpoint(self._run_dir, worker.name, worker.incarnation)
        worker.refusal = None
        self.moves += 1
        worker.moved = self.moves
        return Moved(worker.name, list(worker.plan.stage_names), worker.address, self.moves)

    # --- who can work ---

    def missing(self, stages: Collection[str] | None = None) -> list[WorkerState]:
        """The workers, of those that run one of `stages` or of all, that cannot take work now."""
        return [
            worker
            for worker in self
            if (stages is None or any(stage in stages for stage in worker.plan.stage_names))
            and not self._reachable(worker)
        ]

    def _reachable(self, worker: WorkerState) -> bool:
        """Whether it has loaded, and everybody else knows where its process is."""
        return worker.ready and all(
            other.heard >= worker.moved for other in self if other.ready and other is not worker
        )

    def problem(self) -> str | None:
        """Why not everything can work now, or None."""
        missing = self.missing()
        for worker in missing:
            if worker.restarts.looping:
                return f"worker {worker.name} ended {worker.restarts.in_a_row} times in a row, and {worker.last_end}"
        for worker in missing:
            if worker.last_end is not None:
                return f"worker {worker.name} {worker.last_end}, and is being restarted"
        return f"still loading {', '.join(worker.name for worker in missing)}" if missing else None

    def refusal(self, missing: Collection[WorkerState], now: float) -> OmniError:
        """The error of a request that needs workers which are `missing`."""
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
        """All workers, by name."""
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
