"""Keeps the workers of a deployment running: starts and watches workers, replaces workers that have ended, and ends all
workers at the end.

All work happens on the main process's event loop. The fork server's reports arrive over a socket, and the workers'
messages arrive in the mailbox. Once a second, workers that have not sent a heartbeat are examined.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from enum import Enum
from typing import TypeAlias

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.errors import StartupError
from omni_pipeline.logs import fields
from omni_pipeline.supervision.fork_server import Exited, Launched, Preloaded
from omni_pipeline.supervision.fork_server_client import Launcher, LauncherState
from omni_pipeline.supervision.hang_detection import LOOK_SECONDS, Bounds, Vitals, is_stopped
from omni_pipeline.supervision.mailbox import Mailbox
from omni_pipeline.supervision.plan import PipelinePlan
from omni_pipeline.supervision.restart_policy import Restarts
from omni_pipeline.supervision.worker_state import Roster, WorkerState
from omni_pipeline.wire.messages import Heartbeat, Pulse, Ready, Shutdown, StartFailed
from omni_pipeline.wire.transport import Received
from omni_pipeline.worker.process import Assignment

# When a worker has ended, at most this many waiting messages are handled before its requests fail.
LAST_MESSAGES = 10_000

# If a worker cannot load, maximum time in seconds from its end until its message with the reason arrives.
REASON_SECONDS = 0.5

# Maximum time, in seconds, that the fork server may take to exit after the last worker has ended.
HANG_UP_SECONDS = 2.0

logger = logging.getLogger(__name__)

# The events that `Fleet.start` reports while it runs.
StartProgress: TypeAlias = Preloaded | Ready


class FleetState(Enum):
    """The phases in the life of a fleet, in order. A fleet never returns to an earlier phase.

    The fork server starts to import modules as soon as the `Fleet` object is created. `Launcher.state` shows its
    progress.
    """

    STARTING = "starting"  # some workers have never been ready; if a worker ends, `start` fails
    SERVING = "serving"  # all workers have been ready once; a worker that ends is replaced
    STOPPING = "stopping"  # the workers are being ended, and no process is started any more
    CLOSED = "closed"  # the fork server has ended


class Fleet:
    """The worker processes and their fork server. The constructor starts the fork server.

    Args:
        plan: The workers to run.
        run_dir: Directory for sockets and files.
        mailbox: The main process's sockets. The fleet registers for the messages in which workers report their state.
        lost: Called with each worker whose process has ended or hangs, when requests may have been lost with it.

    Attributes:
        roster: The state of each worker.
        state: The phase in the fleet's life.
    """

    def __init__(self, plan: PipelinePlan, run_dir: str, mailbox: Mailbox, lost: Callable[[WorkerState], None]) -> None:
        self.roster = Roster(run_dir, plan.workers)
        self.state = FleetState.STARTING
        self._plan = plan
        self._run_dir = run_dir
        self._mailbox = mailbox
        self._lost = lost
        self._progress: Callable[[StartProgress], None] = lambda _: None
        self._model_path = ""
        self._changed = asyncio.Event()
        supervision = plan.supervision
        self._bounds = Bounds(supervision.silent_seconds, supervision.step_seconds, supervision.gpu_wait_seconds)
        self._examined = 0.0  # time at which workers were last examined
        self._launcher_restarts = Restarts()
        self._launcher_stopped = 0.0  # number of seconds since a signal stopped the fork server
        self._launcher = self._new_launcher()
        mailbox.register(Heartbeat, self._take_heartbeat)
        mailbox.register(Pulse, self._take_pulse)
        mailbox.register(Ready, self._take_ready)
        mailbox.register(StartFailed, self._take_refusal)

    # --- life ---

    async def start(self, model_path: str, progress: Callable[[StartProgress], None]) -> None:
        """Start every worker and wait until all are ready. After that, workers that end are replaced.

        Raises:
            StartupError: a worker could not load. The message names it and gives the reason.
        """
        self._model_path = model_path
        self._progress = progress
        loop = asyncio.get_running_loop()
        loop.add_reader(self._launcher.fileno(), self._handle_reports)
        self._examined = loop.time()
        loop.call_later(LOOK_SECONDS, self._examine_workers)
        self._launch_next()
        await self.until(lambda: not self.roster.missing() or any(w.last_end for w in self.roster))
        ended = next((worker for worker in self.roster if worker.last_end), None)
        if ended is None:
            if self.state is FleetState.STARTING:
                self.state = FleetState.SERVING
            return
        # The worker's message with the reason and the report of the worker's end use different sockets. So the message
        # may arrive after the report.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REASON_SECONDS):
                await self.until(lambda: any(worker.refusal for worker in self.roster))
        refused = next((worker for worker in self.roster if worker.refusal), None)
        if refused is not None:
            raise StartupError(f"Worker {refused.name} could not load: {refused.refusal}")
        raise StartupError(f"Worker {ended.name} {ended.last_end} while loading.{_quoted(ended.last_words)}")

    async def stop(self, patience: float) -> None:
        """End every process, in any state.

        Args:
            patience: Number of seconds in which workers may exit by themselves before they are killed.
        """
        self._begin_stop()
        if self._launcher.state is LauncherState.READY:
            await self._stop_workers(patience)

    def kill(self) -> None:
        """Kill every process now. A `stop` that waits for the processes then continues."""
        self._begin_stop()
        self._launcher.kill_all()

    def close(self) -> None:
        """End every process now, and wait until the fork server has ended."""
        self.state = FleetState.CLOSED
        asyncio.get_running_loop().remove_reader(self._launcher.fileno())
        self._launcher.close()

    @property
    def stopping(self) -> bool:
        """Whether the fleet is stopping or has stopped."""
        return self.state in (FleetState.STOPPING, FleetState.CLOSED)

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the workers that run, by name."""
        return {worker.name: worker.pid for worker in self.roster if worker.pid is not None}

    @property
    def launcher_pid(self) -> int:
        """Process id of the fork server."""
        return self._launcher.pid

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds. The condition is checked whenever `changed` is called."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def changed(self) -> None:
        """Make every waiting `until` check its condition again."""
        self._changed.set()

    # --- messages from workers ---

    def _take_heartbeat(self, message: Heartbeat, _: Received) -> None:
        """Handle a heartbeat. It shows that the worker is alive, and it contains the worker's counters."""
        worker = self.roster.process(message.worker, message.incarnation)
        if worker is None:
            return
        self._note_life(worker)
        worker.heard = message.epoch
        worker.stats, worker.edges = message.stats, message.edges
        self.changed()

    def _take_pulse(self, message: Pulse, _: Received) -> None:
        """Handle a pulse, which shows that the main thread of a worker on a GPU makes progress."""
        worker = self.roster.process(message.worker, message.incarnation)
        if worker is not None and worker.vitals is not None:
            worker.vitals.pulse()

    def _take_ready(self, message: Ready, _: Received) -> None:
        """Handle a worker's message that it has loaded."""
        worker = self.roster.process(message.worker, message.incarnation)
        if worker is None:
            return
        self._note_life(worker)
        worker.ranks = message.ranks
        worker.became_ready(asyncio.get_running_loop().time(), message.seconds)
        if worker.restarts.total:
            extra = fields(worker=worker.name, worker_pid=worker.pid)
            logger.info("worker %s is ready again", worker.name, extra=extra)
        else:
            self._progress(message)
        self._launch_next()
        self.changed()

    def _take_refusal(self, message: StartFailed, _: Received) -> None:
        """Handle a worker's message that it could not load."""
        worker = self.roster.process(message.worker, message.incarnation)
        # the report of the worker's end came before this message
        if worker is None and self.state is FleetState.STARTING:
            worker = next(each for each in self.roster if each.name == message.worker)
        if worker is not None:
            worker.refusal = message.message
            self.changed()

    # --- reports from the fork server ---

    def _handle_reports(self) -> None:
        for report in self._launcher.reports():
            match report:
                case Preloaded():
                    self._launcher_restarts.ready(asyncio.get_running_loop().time())
                    # the worker that needs the module will report the error
                    for module, reason in report.failed.items():
                        logger.warning("could not import %s beforehand: %s", module, reason)
                    if self.state is FleetState.STARTING:
                        self._progress(report)
                case Launched():
                    worker = self.roster.process(report.worker, report.incarnation)
                    if worker is not None:
                        worker.pid = report.pid
                        worker.vitals = Vitals(report.pid, self._bounds, on_gpu=bool(worker.plan.gpus))
                        if self.stopping:
                            self._launcher.kill(report.pid)
                case Exited():
                    worker = self.roster.process(report.worker, report.incarnation)
                    if worker is not None:
                        self._end_process(worker, _describe_exit(report.code), report.last_words)
        if self._launcher_gone():
            self._end_launcher()
        self.changed()

    # --- ends and restarts ---

    def _end_process(self, worker: WorkerState, how: str, words: list[str]) -> None:
        """Handle the end of a worker's process: fail its requests, and plan its next process."""
        self._mailbox.take(LAST_MESSAGES)
        pid, killed_for = worker.pid, worker.killed_for
        how = f"{killed_for} and was killed" if killed_for is not None else how
        self._mailbox.forget(worker.address)
        worker.process_ended(how, words)
        if not self.stopping:
            logger.error("worker %s %s", worker.name, worker.last_end, extra=fields(worker=worker.name, worker_pid=pid))
        if self.state is FleetState.SERVING:
            self._lost(worker)
            self._restart(worker)

    def _restart(self, worker: WorkerState) -> None:
        """Plan the next process of a worker, and announce it to the other workers."""
        others = [other.address for other in self.roster if other.running]
        self._mailbox.send(self.roster.move(worker), *others)
        loop = asyncio.get_running_loop()
        pause = worker.restarts.ended(loop.time())
        worker.ordered = loop.time() + pause
        if worker.restarts.looping:
            extra = fields(worker=worker.name, restarts=worker.restarts.total)
            row = worker.restarts.in_a_row
            logger.error("worker %s ended %d times in a row; next try in %g s", worker.name, row, pause, extra=extra)
            for line in worker.last_words:
                logger.error("last words of worker %s: %s", worker.name, line, extra=fields(worker=worker.name))
        loop.call_later(pause, self._launch, worker)

    def _launch_next(self) -> None:
        """Launch each worker that has not started yet if all workers in its plan's `after` are ready."""
        ready = {worker.name for worker in self.roster if worker.ready}
        for worker in self.roster:
            if not worker.running and not worker.restarts.total and ready.issuperset(worker.plan.after):
                self._launch(worker)

    def _launch(self, worker: WorkerState) -> None:
        if self.stopping:
            return
        worker.running = True
        worker.ordered = asyncio.get_running_loop().time()
        worker.heard = self.roster.moves
        assignment = Assignment(
            plan=worker.plan,
            incarnation=worker.incarnation,
            graph_path=self._plan.graph_path,
            model_path=self._model_path,
            run_dir=self._run_dir,
            addresses={**self.roster.addresses(), COLLECTOR: self._mailbox.address},
            epoch=self.roster.moves,
            log_level=self._plan.log_level,
            log_format=self._plan.log_format,
            traced=self._plan.trace.on,
        )
        self._launcher.launch(assignment)

    def _end_launcher(self) -> None:
        """Handle the end of the fork server: all workers have ended with it. Plan a new fork server."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._launcher.fileno())
        if not self.stopping:
            logger.error("the fork server (pid %s) has ended", self._launcher.pid)
        for worker in self.roster:
            if worker.running:
                self._end_process(worker, "ended with the fork server", [])
        if self.state is FleetState.SERVING:
            loop.call_later(self._launcher_restarts.ended(loop.time()), self._replace_launcher)

    def _replace_launcher(self) -> None:
        if self.stopping:
            return
        self._launcher.close()
        self._launcher = self._new_launcher()
        asyncio.get_running_loop().add_reader(self._launcher.fileno(), self._handle_reports)
        for worker in self.roster:
            if worker.running:  # the order to start this worker was sent to a fork server that had already ended
                self._launch(worker)

    def _new_launcher(self) -> Launcher:
        return Launcher(self._run_dir, self._plan.preload())

    # --- signs of life ---

    def _note_life(self, worker: WorkerState) -> None:
        if worker.vitals is not None:
            worker.vitals.beat()

    def _examine_workers(self) -> None:
        """Kill the workers that hang, and the fork server if it has been stopped."""
        if self.state is FleetState.CLOSED:
            return
        loop = asyncio.get_running_loop()
        # if this process was delayed, heartbeats of workers may still wait in its inbox, so they are handled first
        self._mailbox.take(LAST_MESSAGES)
        elapsed, self._examined = loop.time() - self._examined, loop.time()
        # A worker that needs a kernel which another worker compiles is idle until the kernel is ready.
        compiling = any(worker.vitals is not None and worker.vitals.compiles for worker in self.roster)
        for worker in self.roster:
            if worker.vitals is None or worker.killed_for is not None or worker.pid is None:
                continue
            worker.killed_for = worker.vitals.look(elapsed, worker.ranks, others_compile=compiling)
            if worker.killed_for is not None:
                extra = fields(worker=worker.name, worker_pid=worker.pid)
                logger.error("worker %s %s; killing it", worker.name, worker.killed_for, extra=extra)
                self._launcher.kill(worker.pid)
                worker.hangs(worker.killed_for)
                if self.state is FleetState.SERVING:
                    self._lost(worker)  # report the loss now, since the process may take long to end
                self.changed()
        # The fork server normally sleeps, and sleeping is not a sign of a hang. But if a signal has stopped the fork
        # server, it cannot carry out orders.
        stopped = not self._launcher_gone() and is_stopped(self._launcher.pid)
        self._launcher_stopped = self._launcher_stopped + min(elapsed, 2 * LOOK_SECONDS) if stopped else 0.0
        if self._launcher_stopped > self._bounds.silent_seconds:
            logger.error("the fork server (pid %s) has been stopped; killing it", self._launcher.pid)
            self._launcher.kill_all()
        loop.call_later(LOOK_SECONDS, self._examine_workers)

    # --- the end ---

    def _begin_stop(self) -> None:
        if self.state is not FleetState.CLOSED:
            self.state = FleetState.STOPPING
        self.changed()

    async def _stop_workers(self, patience: float) -> None:
        self._mailbox.send(Shutdown(), *(worker.address for worker in self.roster if worker.ready))
        for worker in self.roster:
            if worker.pid and not worker.ready:  # a worker that is still loading does not read messages
                self._launcher.kill(worker.pid)
        try:
            async with asyncio.timeout(patience):
                await self.until(lambda: self._launcher_gone() or not self.pids)
        except TimeoutError:
            logger.warning("killing %s, still busy after %g s", ", ".join(self.pids), patience)
        self._launcher.hang_up()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANG_UP_SECONDS):
                await self.until(self._launcher_gone)

    def _launcher_gone(self) -> bool:
        return self._launcher.state is LauncherState.GONE


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    name = next((number.name for number in signal.Signals if number == -code), f"signal {-code}")
    return f"was killed by {name}{hint}"


def _quoted(words: list[str]) -> str:
    """The last lines of a process's output, formatted as the end of a message."""
    return "".join(f"\n    {line}" for line in (["Its last words:", *words] if words else []))
