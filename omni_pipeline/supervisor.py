"""The pipeline as the main process sees it: starts the workers, passes requests in and answers out, replaces the dead.

Everything happens on one asyncio loop: worker messages and fork server reports arrive by file descriptor, and once a
second the workers that have not been heard of are looked at. `Supervisor` is the `Pipeline` that the gateway is written
against.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from typing import Any, TypeAlias

from omni_pipeline.deployment import Deployment
from omni_pipeline.errors import ErrorInfo, StartupError, internal, unavailable, worker_lost
from omni_pipeline.forkserver import Exited, Launched, Preloaded
from omni_pipeline.graph import COLLECTOR, GATEWAY
from omni_pipeline.launch import Launcher
from omni_pipeline.logs import fields
from omni_pipeline.mailbox import Mailbox
from omni_pipeline.metrics import Edges, EdgeStats
from omni_pipeline.restarts import Restarts
from omni_pipeline.roster import Roster, Worker, WorkerReport
from omni_pipeline.tracing import Notes, Took
from omni_pipeline.transport import MAIN, Received, make_run_dir
from omni_pipeline.vitals import LOOK_SECONDS, Bounds, Vitals, is_stopped
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
    Work,
)
from omni_pipeline.worker_process import Assignment

# Messages of a dead worker that are taken in before its requests are given up.
LAST_MESSAGES = 10_000

# How long the reason of a worker that could not load may come after its end.
REASON_SECONDS = 0.5

# How long the fork server may take to leave, when nothing of it runs any more.
HANG_UP_SECONDS = 2.0

logger = logging.getLogger(__name__)

# What `Supervisor.start` tells while it goes on.
Progress: TypeAlias = Preloaded | Ready


class Supervisor:
    """The workers of one deployment.

    Making one lets the fork server start importing at once, so that the caller can prepare other things meanwhile.
    Then `start` it, use it from that event loop as `gateway.pipeline.Pipeline`, and `stop` it whatever happened.

    Raises:
        StartupError: there is no place for the sockets.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._model_path = ""
        self._stats: dict[str, StageStats] = {}
        self._edges: dict[str, list[EdgeStats]] = {}  # by worker
        self._own_edges = Edges()
        self._deliver: Callable[[Work | Failed], None] = _to_nobody
        self._lost: Callable[[frozenset[str], ErrorInfo], None] = _to_nobody
        self._noted: Callable[[Notes], None] = _to_nobody
        self._progress: Callable[[Progress], None] = _to_nobody
        self._changed = asyncio.Event()
        self._bounds = Bounds(deployment.supervision.silent_seconds, deployment.supervision.step_seconds)
        self._looked = 0.0
        self._started = False  # `start` has been called
        self._serving = False  # and all workers have been ready
        self._stopping = False
        self._closed = False
        self._preloaded = False
        self._launcher_gone = False
        self._launcher_restarts = Restarts()
        self._launcher_stopped = 0.0  # seconds
        self._run_dir = make_run_dir()
        try:
            self._roster = Roster(self._run_dir, deployment.workers)
            codec = Codec(deployment.graph.body_types())
            self._mailbox = Mailbox(self._run_dir, codec, self._handle, self._unreadable)
            self._launcher = self._new_launcher()
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
        self._model_path = model_path
        self._progress = progress or _to_nobody
        self._started = True
        loop = asyncio.get_running_loop()
        self._mailbox.open()
        loop.add_reader(self._launcher.fileno(), self._hear)
        self._looked = loop.time()
        loop.call_later(LOOK_SECONDS, self._look)
        self._launch_next()
        await self.until(lambda: not self._roster.missing() or any(w.last_end for w in self._roster))
        ended = next((worker for worker in self._roster if worker.last_end), None)
        if ended is None:
            self._serving = True
            return
        # Its own words travel by another socket than the news of its end, and may be a moment behind.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REASON_SECONDS):
                await self.until(lambda: any(worker.refusal for worker in self._roster))
        refused = next((worker for worker in self._roster if worker.refusal), None)
        if refused is not None:
            raise StartupError(f"Worker {refused.name} could not load: {refused.refusal}")
        raise StartupError(f"Worker {ended.name} {ended.last_end} while loading.{_quoted(ended.last_words)}")

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
        self._stopping = True
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

    async def wait_for(self, stages: Collection[str] | None, seconds: float | None) -> None:
        """Wait until some stages can work; see `gateway.pipeline.Pipeline`."""
        if seconds is not None:
            self._check_patience(stages, seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.until(lambda: self._stopping or not self._roster.missing(stages))
        self._check(stages)

    def _check_patience(self, stages: Collection[str] | None, seconds: float) -> None:
        """Refuse at once what would be refused after `seconds`."""
        now = asyncio.get_running_loop().time()
        missing = self._roster.missing(stages)
        expected = [worker.seconds_to_ready(now) for worker in missing]
        if any(each is None or each > seconds for each in expected):
            raise self._roster.refusal(missing, now)

    def _check(self, stages: Collection[str] | None) -> None:
        """Refuse work for stages that cannot do it now."""
        if self._stopping:
            raise unavailable("The server is shutting down.", code="shutting_down")
        missing = self._roster.missing(stages)
        if missing:
            raise self._roster.refusal(missing, asyncio.get_running_loop().time())

    def submit(self, request_id: str, body: Any, stages: Collection[str] | None = None) -> None:
        """Send a request body to the entry stage; see `gateway.pipeline.Pipeline`."""
        self._check(stages)
        entry = self._deployment.graph.entry
        self._mailbox.send(Start(request_id, GATEWAY, entry, body), self._roster.addresses()[entry])

    def abort(self, request_id: str) -> None:
        """Make every worker forget a request."""
        self._mailbox.send(Abort(request_id), *(worker.address for worker in self._roster if worker.ready))

    @property
    def problem(self) -> str | None:
        """Why the pipeline cannot serve everything now, or None."""
        return "it is shutting down" if self._stopping else self._roster.problem()

    @property
    def workers(self) -> Mapping[str, WorkerReport]:
        """How each worker is, by name."""
        return self._roster.reports()

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
        return {worker.name: worker.restarts.total for worker in self._roster}

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids of the workers that run, by name."""
        return {worker.name: worker.pid for worker in self._roster if worker.pid is not None}

    @property
    def launcher_pid(self) -> int:
        """Process id of the fork server."""
        return self._launcher.pid

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at whenever a worker has changed or told its figures."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    # --- what comes in ---

    def _handle(self, message: Message, received: Received) -> None:
        match message:
            case Start() | Chunk() | End():
                self._take(message, received)
            case Failed():
                self._deliver(message)
            case Heartbeat():
                worker = self._roster.process(message.worker, message.incarnation)
                if worker is not None:
                    self._signs_of_life(worker)
                    worker.heard = message.epoch
                    self._stats.update(message.stats)
                    self._edges[message.worker] = message.edges
                    self._changed.set()
            case Notes():
                self._noted(message)
            case Ready():
                worker = self._roster.process(message.worker, message.incarnation)
                if worker is not None:
                    self._signs_of_life(worker)
                    worker.became_ready(asyncio.get_running_loop().time(), message.seconds)
                    if self._serving:
                        extra = fields(worker=worker.name, worker_pid=worker.pid)
                        logger.info("worker %s is there again", worker.name, extra=extra)
                    else:
                        self._progress(message)
                    self._launch_next()
                    self._changed.set()
            case StartFailed():
                worker = self._roster.process(message.worker, message.incarnation)
                if worker is None and not self._serving:  # the news of its end was faster
                    worker = next(each for each in self._roster if each.name == message.worker)
                if worker is not None:
                    worker.refusal = message.message
                    self._changed.set()
            case _:
                logger.error("misdirected message: a %s", type(message).__name__)  # what is in it is not for the log

    def _unreadable(self, request_id: str) -> None:
        error = internal("An answer of the pipeline could not be read.")
        self._deliver(Failed(request_id, COLLECTOR, error.info))

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
                    if not self._serving:
                        self._progress(report)
                case Launched():
                    worker = self._roster.process(report.worker, report.incarnation)
                    if worker is not None:
                        worker.pid = report.pid
                        worker.vitals = Vitals(report.pid, self._bounds)
                        if self._stopping:
                            self._launcher.kill(report.pid)
                case Exited():
                    worker = self._roster.process(report.worker, report.incarnation)
                    if worker is not None:
                        self._ended(worker, _describe_exit(report.code), report.last_words)
        if not there:
            self._launcher_ended()
        self._changed.set()

    # --- ends and new beginnings ---

    def _ended(self, worker: Worker, how: str, words: list[str]) -> None:
        self._mailbox.take(LAST_MESSAGES)
        pid, killed_for = worker.pid, worker.killed_for
        how = f"{killed_for} and was killed" if killed_for is not None else how
        self._mailbox.forget(worker.address)
        for stage in worker.plan.stage_names:
            self._stats.pop(stage, None)
        self._edges.pop(worker.name, None)
        worker.process_ended(how, words)
        if self._stopping:
            return
        logger.error("worker %s %s", worker.name, worker.last_end, extra=fields(worker=worker.name, worker_pid=pid))
        if not self._serving:
            return  # `start` gives up
        self._lost(frozenset(worker.plan.stage_names), worker_lost(worker.name).info)
        others = [other.address for other in self._roster if other.running]
        self._mailbox.send(self._roster.move(worker), *others)
        loop = asyncio.get_running_loop()
        pause = worker.restarts.ended(loop.time())
        worker.ordered = loop.time() + pause
        if worker.restarts.looping:
            extra = fields(worker=worker.name, restarts=worker.restarts.total)
            row = worker.restarts.in_a_row
            logger.error("worker %s ended %d times in a row; next try in %g s", worker.name, row, pause, extra=extra)
            for line in words:
                logger.error("last words of worker %s: %s", worker.name, line, extra=fields(worker=worker.name))
        loop.call_later(pause, self._launch, worker)

    def _launch_next(self) -> None:
        """Launch the workers that have only waited for others."""
        ready = {worker.name for worker in self._roster if worker.ready}
        for worker in self._roster:
            if not worker.running and not worker.restarts.total and ready.issuperset(worker.plan.after):
                self._launch(worker)

    def _launch(self, worker: Worker) -> None:
        if self._stopping:
            return
        worker.running = True
        worker.ordered = asyncio.get_running_loop().time()
        worker.heard = self._roster.moves
        assignment = Assignment(
            plan=worker.plan,
            incarnation=worker.incarnation,
            graph_path=self._deployment.graph_path,
            model_path=self._model_path,
            run_dir=self._run_dir,
            addresses={**self._roster.addresses(), COLLECTOR: self._mailbox.address},
            epoch=self._roster.moves,
            log_level=self._deployment.log_level,
            log_format=self._deployment.log_format,
            traced=self._deployment.trace.on,
        )
        self._launcher.launch(assignment)

    def _launcher_ended(self) -> None:
        """The fork server is gone, and all workers with it: begin again with a new one."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._launcher.fileno())
        self._launcher_gone = True
        self._preloaded = False
        if not self._stopping:
            logger.error("the fork server (pid %s) has ended", self._launcher.pid)
        for worker in self._roster:
            if worker.running:
                self._ended(worker, "ended with the fork server", [])
        if self._serving and not self._stopping:
            loop.call_later(self._launcher_restarts.ended(loop.time()), self._replace_launcher)

    def _replace_launcher(self) -> None:
        if self._stopping:
            return
        self._launcher.close()
        self._launcher = self._new_launcher()
        self._launcher_gone = False
        asyncio.get_running_loop().add_reader(self._launcher.fileno(), self._hear)
        for worker in self._roster:
            if worker.running:  # ordered of a fork server that was gone already
                self._launch(worker)

    def _new_launcher(self) -> Launcher:
        return Launcher(self._run_dir, self._deployment.preload())

    # --- signs of life ---

    def _signs_of_life(self, worker: Worker) -> None:
        if worker.vitals is not None:
            worker.vitals.beat()

    def _look(self) -> None:
        """Look for workers that hang."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        self._mailbox.take(LAST_MESSAGES)  # when it is we who were late, their beats wait here
        elapsed, self._looked = loop.time() - self._looked, loop.time()
        for worker in self._roster:
            if worker.vitals is None or worker.killed_for is not None or worker.pid is None:
                continue
            worker.killed_for = worker.vitals.look(elapsed)
            if worker.killed_for is not None:
                extra = fields(worker=worker.name, worker_pid=worker.pid)
                logger.error("worker %s %s; killing it", worker.name, worker.killed_for, extra=extra)
                self._launcher.kill(worker.pid)
        # The fork server sleeps most of its life; but one that is stopped would leave all of this undone.
        stopped = not self._launcher_gone and is_stopped(self._launcher.pid)
        self._launcher_stopped = self._launcher_stopped + min(elapsed, 2 * LOOK_SECONDS) if stopped else 0.0
        if self._launcher_stopped > self._bounds.silent_seconds:
            logger.error("the fork server (pid %s) has been stopped; killing it", self._launcher.pid)
            self._launcher.kill_all()
        loop.call_later(LOOK_SECONDS, self._look)

    # --- the end ---

    async def _stop_workers(self, patience: float) -> None:
        self._mailbox.send(Shutdown(), *(worker.address for worker in self._roster if worker.ready))
        for worker in self._roster:
            if worker.pid and not worker.ready:  # still loading: it reads no messages
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
        if self._started and not self._launcher_gone:
            asyncio.get_running_loop().remove_reader(self._launcher.fileno())
        self._launcher.close()
        self._mailbox.close()
        shutil.rmtree(self._run_dir, ignore_errors=True)


def _to_nobody(*_: object) -> None:
    """Takes what nobody has asked for."""


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


def _quoted(words: list[str]) -> str:
    """The last words of a process as an appendix to a message."""
    return "".join(f"\n    {line}" for line in (["Its last words:", *words] if words else []))
