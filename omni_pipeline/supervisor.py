"""The pipeline as the main process sees it: starts the workers, passes requests in and answers out, notices deaths.

Everything happens on one asyncio loop: worker messages and fork server reports arrive by file descriptor, nothing
polls. `Supervisor` is the `Pipeline` that the gateway is written against.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, TypeAlias

import zmq
from msgspec import Struct

from omni_pipeline.deployment import Deployment, WorkerPlan
from omni_pipeline.errors import ErrorInfo, StartupError, internal, unavailable
from omni_pipeline.forkserver import Exited, Launched, Preloaded
from omni_pipeline.graph import COLLECTOR, GATEWAY
from omni_pipeline.launch import Launcher
from omni_pipeline.logs import fields
from omni_pipeline.metrics import Edges, EdgeStats
from omni_pipeline.tracing import Notes, Took
from omni_pipeline.transport import MAIN, Inbox, Outbox, Received, endpoint, make_run_dir
from omni_pipeline.wire import (
    Abort,
    Chunk,
    Codec,
    End,
    Failed,
    Heartbeat,
    Message,
    Ready,
    Shutdown,
    StageStats,
    Start,
    StartFailed,
    WireError,
    Work,
)
from omni_pipeline.worker_process import Assignment

# Messages taken in before the event loop's other tasks get their turn.
DRAIN_MESSAGES = 128

# Messages of a dead worker that are taken in before its requests are given up.
LAST_WORDS = 10_000

# How long the reason of a worker that could not load may come after its end.
REASON_SECONDS = 0.5

# How long the fork server may take to leave, when nothing of it runs any more.
HANG_UP_SECONDS = 2.0

logger = logging.getLogger(__name__)

# What `Supervisor.start` tells while it goes on.
Progress: TypeAlias = Preloaded | Ready


class _WorkerState(Struct):
    """One worker: what it runs, and how far it is. `ended` says how it ended, once it has."""

    plan: WorkerPlan
    address: str
    incarnation: int = 0
    pid: int | None = None
    ready: bool = False
    ended: str | None = None


class Supervisor:
    """The workers of one deployment.

    Making one lets the fork server start importing at once, so that the caller can prepare other things meanwhile.
    Then `start` it, use it from that event loop as `gateway.pipeline.Pipeline`, and `stop` it whatever happened.

    Raises:
        StartupError: there is no place for the sockets.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._codec = Codec(deployment.graph.body_types())
        self._stats: dict[str, StageStats] = {}
        self._edges: dict[str, list[EdgeStats]] = {}  # by worker
        self._own_edges = Edges()
        self._deliver: Callable[[Work | Failed], None] = _to_nobody
        self._lost: Callable[[frozenset[str], ErrorInfo], None] = _to_nobody
        self._noted: Callable[[Notes], None] = _to_nobody
        self._progress: Callable[[Progress], None] = _to_nobody
        self._changed = asyncio.Event()
        self._preloaded = False
        self._started = False
        self._launcher_gone = False
        self._stopping = False
        self._closed = False
        self._refusal: str | None = None  # the reason of a worker that could not load
        self._run_dir = make_run_dir()
        try:
            self._workers = {
                plan.name: _WorkerState(plan, endpoint(self._run_dir, plan.name, 0)) for plan in deployment.workers
            }
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            self._inbox = Inbox(self._context, endpoint(self._run_dir, MAIN, 0))
            self._outbox = Outbox(self._context)
            self._launcher = Launcher(self._run_dir, deployment.preload(), fresh=deployment.uses_cuda)
        except BaseException:
            shutil.rmtree(self._run_dir)
            raise

    # --- life ---

    async def start(self, model_path: str, progress: Callable[[Progress], None] | None = None) -> None:
        """Start every worker and wait until all are ready.

        Args:
            model_path: Directory of the checkpoint.
            progress: Told of each step.

        Raises:
            StartupError: a worker could not load; says which and why. `stop` clears up.
        """
        self._progress = progress or _to_nobody
        self._started = True
        loop = asyncio.get_running_loop()
        loop.add_reader(self._inbox.fileno(), self._take_in)
        loop.add_reader(self._launcher.fileno(), self._hear)
        for worker in self._workers.values():
            self._launcher.launch(self._assignment(worker, model_path))
        workers = self._workers.values()
        await self.until(lambda: all(w.ready for w in workers) or any(w.ended for w in workers))
        ended = next((worker for worker in workers if worker.ended), None)
        if ended is None:
            return
        # Its own words travel by another socket than the news of its end, and may be a moment behind.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REASON_SECONDS):
                await self.until(lambda: self._refusal is not None)
        raise StartupError(self._refusal or f"Worker {ended.plan.name} {ended.ended} while loading.")

    async def stop(self, patience: float = 10.0) -> None:
        """End every process and remove every file, in any state.

        Args:
            patience: Seconds that workers get to leave by themselves before they are killed.
        """
        self._stopping = True
        try:
            if self._started and self._preloaded and not self._launcher_gone:
                await self._stop_workers(patience)
        finally:
            self._close()

    def kill(self) -> None:
        """End every worker now; a `stop` that is waiting for them goes on."""
        self._launcher.kill_all()

    # --- the pipeline ---

    def connect(
        self, deliver: Callable[[Work | Failed], None], lost: Callable[[frozenset[str], ErrorInfo], None]
    ) -> None:
        """Say who takes what comes back; see `gateway.pipeline.Pipeline`."""
        self._deliver = deliver
        self._lost = lost

    def trace(self, noted: Callable[[Notes], None]) -> None:
        """Say who takes what is noted about requests; see `gateway.pipeline.Pipeline`."""
        self._noted = noted

    def submit(self, request_id: str, body: Any) -> None:
        """Send a request body to the entry stage.

        Raises:
            OmniError: (503) some worker is not there. Which stages a request needs is decided on its way, so a missing
                one refuses all.
        """
        problem = self.problem
        if problem is not None:
            raise unavailable(f"The service is not ready: {problem}.", code="not_ready")
        entry = self._deployment.graph.entry
        worker = next(worker for worker in self._workers.values() if entry in worker.plan.stage_names)
        self._outbox.send(worker.address, self._codec.encode(Start(request_id, GATEWAY, entry, body)))

    def abort(self, request_id: str) -> None:
        """Make every worker forget a request."""
        self._broadcast(Abort(request_id))

    @property
    def problem(self) -> str | None:
        """Why the pipeline cannot serve now, or None."""
        if self._stopping:
            return "it is shutting down"
        for worker in self._workers.values():
            if worker.ended:
                return f"worker {worker.plan.name} {worker.ended}"
        loading = [name for name, worker in self._workers.items() if not worker.ready]
        return f"still loading {', '.join(loading)}" if loading else None

    @property
    def stats(self) -> Mapping[str, StageStats]:
        """The latest figures of each stage, by name; a stage whose worker is gone has none."""
        return self._stats

    @property
    def edges(self) -> Iterable[EdgeStats]:
        """The latest figures of each edge of the graph that ends in a worker that runs, or here."""
        return chain(*self._edges.values(), self._own_edges.all())

    @property
    def restarts(self) -> Mapping[str, int]:
        """How often each worker has been started again, by name."""
        return {name: worker.incarnation for name, worker in self._workers.items()}

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids of the workers that run, by name."""
        return {name: worker.pid for name, worker in self._workers.items() if worker.pid and not worker.ended}

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at whenever a worker has changed or told its figures."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    # --- what comes in ---

    def _take_in(self) -> None:
        """Handle what waits in the inbox: some of it, so that other tasks get their turn too."""
        if self._closed:
            return
        emptied = False
        try:
            emptied = self._handle_waiting(DRAIN_MESSAGES) < DRAIN_MESSAGES
        finally:
            if not emptied:  # the descriptor only tells of news, so what is left needs a reminder
                asyncio.get_running_loop().call_soon(self._take_in)

    def _handle_waiting(self, most: int) -> int:
        count = 0
        for received in self._inbox.drain(most):
            count += 1
            try:
                message = self._codec.decode(received.frames)
            except WireError as error:
                logger.error("unreadable message: %s", error, extra=fields(answer_id=error.request_id))
                if error.request_id is not None:
                    unreadable = internal("An answer of the pipeline could not be read.").info
                    self._deliver(Failed(error.request_id, COLLECTOR, unreadable))
            else:
                self._handle(message, received)
        return count

    def _handle(self, message: Message, received: Received) -> None:
        match message:
            case Start() | Chunk() | End():
                self._take(message, received)
            case Failed():
                self._deliver(message)
            case Heartbeat():
                if not self._workers[message.worker].ended:
                    self._stats.update(message.stats)
                    self._edges[message.worker] = message.edges
                    self._changed.set()
            case Notes():
                self._noted(message)
            case Ready():
                self._workers[message.worker].ready = True
                self._progress(message)
                self._changed.set()
            case StartFailed():
                self._refusal = self._refusal or f"Worker {message.worker} could not load: {message.message}"
                self._changed.set()
            case _:
                logger.error("misdirected message: a %s", type(message).__name__)  # what is in it is not for the log

    def _take(self, message: Work, received: Received) -> None:
        taken = time.monotonic()
        self._own_edges.add(message.source, message.target, received.size, taken - received.sent)
        self._deliver(message)
        if self._deployment.trace.on:
            took = Took(message.request_id, message.source, message.target, received.sent, taken, time.monotonic())
            self._noted(Notes(MAIN, taken, [took], []))

    def _hear(self) -> None:
        """Handle what the fork server reports."""
        reports, there = self._launcher.reports()
        for report in reports:
            match report:
                case Preloaded():
                    self._preloaded = True
                    for module, reason in report.failed.items():  # the worker that needs it will fail, and say so
                        logger.warning("could not import %s beforehand: %s", module, reason)
                    self._progress(report)
                case Launched():
                    self._workers[report.worker].pid = report.pid
                case Exited():
                    self._ended(self._workers[report.worker], _describe_exit(report.code))
        if not there:
            self._launcher_gone = True
            asyncio.get_running_loop().remove_reader(self._launcher.fileno())
            for worker in self._workers.values():
                if not worker.ended:
                    self._ended(worker, "ended with the fork server")
        self._changed.set()

    def _ended(self, worker: _WorkerState, how: str) -> None:
        self._handle_waiting(LAST_WORDS)
        worker.ended = how
        worker.ready = False
        self._outbox.forget(worker.address)
        if self._stopping:
            return
        name = worker.plan.name
        logger.error("worker %s %s", name, how, extra=fields(worker=name, worker_pid=worker.pid))
        for stage in worker.plan.stage_names:
            self._stats.pop(stage, None)
        self._edges.pop(name, None)
        error = unavailable(
            f"The {name} worker ended unexpectedly while it worked on this request.", code="worker_lost"
        )
        self._lost(frozenset(worker.plan.stage_names), error.info)

    # --- what goes out ---

    def _assignment(self, worker: _WorkerState, model_path: str) -> Assignment:
        addresses = {stage: other.address for other in self._workers.values() for stage in other.plan.stage_names}
        return Assignment(
            plan=worker.plan,
            incarnation=worker.incarnation,
            graph_path=self._deployment.graph_path,
            model_path=model_path,
            run_dir=self._run_dir,
            addresses={**addresses, COLLECTOR: self._inbox.address},
            log_level=self._deployment.log_level,
            log_format=self._deployment.log_format,
            traced=self._deployment.trace.on,
        )

    def _broadcast(self, message: Abort | Shutdown) -> None:
        frames = self._codec.encode(message)
        for worker in self._workers.values():
            if worker.ready:
                self._outbox.send(worker.address, frames)

    # --- the end ---

    async def _stop_workers(self, patience: float) -> None:
        self._broadcast(Shutdown())
        for worker in self._workers.values():
            if worker.pid and not worker.ready and not worker.ended:  # still loading: it reads no messages
                self._launcher.kill(worker.pid)
        try:
            async with asyncio.timeout(patience):
                await self.until(lambda: self._launcher_gone or not self.pids)
        except TimeoutError:
            logger.warning("killing %s, still busy after %g s", ", ".join(self.pids), patience)
        self._launcher.hang_up()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANG_UP_SECONDS):
                await self.until(lambda: self._launcher_gone)

    def _close(self) -> None:
        self._closed = True
        if self._started:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._inbox.fileno())
            loop.remove_reader(self._launcher.fileno())
        self._launcher.close()
        self._inbox.close()
        self._outbox.close(linger_ms=0)
        self._context.term()
        shutil.rmtree(self._run_dir, ignore_errors=True)


def _to_nobody(*_: object) -> None:
    """Takes what nobody has asked for."""


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"
