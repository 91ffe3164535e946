"""Keeps the workers of a deployment running. Starts and watches workers, replaces workers that have ended, and stops
all workers at the end. The workers of another host are started by the agent of that host.

All work happens on the main process's event loop. The fork server's reports arrive over a socket, and the workers'
messages arrive in the mailbox. Once a second, this module examines the workers that have not sent a heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Collection
from enum import Enum
from typing import TypeAlias

from msgspec import structs

from omni_pipeline.contract.plan import WorkerPlan
from omni_pipeline.errors import StartupError
from omni_pipeline.logs import fields
from omni_pipeline.supervision.fork_server import Exited, Launched, Preloaded
from omni_pipeline.supervision.fork_server_client import Launcher, LauncherState
from omni_pipeline.supervision.hang_detection import LOOK_SECONDS, Bounds, Vitals, is_stopped
from omni_pipeline.supervision.mailbox import Mailbox
from omni_pipeline.supervision.plan import PipelinePlan
from omni_pipeline.supervision.remote_hosts import HostReport, Member, RemoteHosts, RemoteLauncher
from omni_pipeline.supervision.restart_timing import Restarts
from omni_pipeline.supervision.worker_state import OWN_HOST, Phase, Roster, WorkerState
from omni_pipeline.wire.host_messages import ClockOffset, ConnectionLost, KnownHosts, Sample
from omni_pipeline.wire.keys import KeyPair
from omni_pipeline.wire.messages import Heartbeat, Message, Pulse, Ready, Shutdown, StartFailed
from omni_pipeline.wire.network import HostLink
from omni_pipeline.wire.transport import MAIN, Received
from omni_pipeline.worker.process import Assignment

# When a worker has ended, up to this number of waiting messages are handled before the worker's requests fail.
LAST_MESSAGES = 10_000

# Maximum time, in seconds, to wait for the message of a worker that could not load. The message contains the reason,
# and may arrive after the worker's end.
REASON_SECONDS = 0.5

# Maximum time, in seconds, that the fork server may take to exit after the last worker has ended.
HANG_UP_SECONDS = 2.0

logger = logging.getLogger(__name__)

# The events that `Fleet.start` reports while it runs.
StartProgress: TypeAlias = Preloaded | Ready


class FleetState(Enum):
    """The states of a fleet, in order. A fleet never returns to an earlier state.

    The fork server starts to import modules as soon as the `Fleet` object is created. `Launcher.state` shows its
    progress.
    """

    STARTING = "starting"  # some workers have not been ready yet; if a worker ends, `start` fails
    SERVING = "serving"  # all workers have been ready; a worker that ends is replaced
    STOPPING = "stopping"  # the workers are being ended, and no process is started any more
    CLOSED = "closed"  # the fork server has ended


class Fleet:
    """All worker processes and their fork server. The constructor starts the fork server.

    Args:
        plan: The workers to run.
        run_dir: Directory for sockets and files on this host.
        mailbox: The main process's sockets. The fleet registers handlers for the messages in which workers report their
            state.
        lost: Called with each worker whose process has ended or hangs, because requests may have been lost.
        link: How to reach other hosts; None if the service runs on one host.
        members: The other hosts.

    Attributes:
        roster: The state of each worker.
        state: The state of the fleet.
        hosts: The other hosts that have joined.
    """

    def __init__(
        self,
        plan: PipelinePlan,
        run_dir: str,
        mailbox: Mailbox,
        lost: Callable[[WorkerState], None],
        link: HostLink | None = None,
        members: Collection[Member] = (),
    ) -> None:
        self._run_dirs = {OWN_HOST: run_dir, **{member.name: member.run_dir for member in members}}
        self.roster = Roster(self._run_dirs, (worker for worker in plan.workers if not worker.spare))
        self.state = FleetState.STARTING
        self._plan = plan
        self._mailbox = mailbox
        self._lost = lost
        self._progress: Callable[[StartProgress], None] = lambda _: None
        self._model_path = ""
        self._changed = asyncio.Event()
        supervision = plan.supervision
        self._bounds = Bounds(supervision.silent_seconds, supervision.step_seconds, supervision.gpu_wait_seconds)
        self._examined = 0.0  # time at which workers were last examined
        self._launcher_restarts = {name: Restarts() for name in self._run_dirs}
        self._launcher_stopped = 0.0  # number of seconds since a signal stopped the fork server
        self._launcher = self._new_launcher()
        self._link = link
        self._keys = {MAIN: link.keys.public} if link is not None else {}
        self.hosts = RemoteHosts(
            mailbox,
            link.lease_seconds if link is not None else 0.0,
            reported=self._handle_reports,
            lost=self._lose_host,
            clock_moved=self._move_clock,
        )
        for member in members:
            self._keys[member.name] = member.public_key
            self.hosts.join(member)
            self.hosts.open(member.name, plan.preload(member.name))
        mailbox.register(Heartbeat, self._take_heartbeat)
        mailbox.register(Pulse, self._take_pulse)
        mailbox.register(Ready, self._take_ready)
        mailbox.register(StartFailed, self._take_refusal)

    # --- life ---

    async def start(self, model_path: str, progress: Callable[[StartProgress], None]) -> None:
        """Start every worker, and wait until all workers are ready. After that, the fleet replaces workers that end.

        Raises:
            StartupError: a worker could not load. The message names the worker and gives the reason.
        """
        self._model_path = model_path
        self._progress = progress
        loop = asyncio.get_running_loop()
        loop.add_reader(self._launcher.fileno(), self._handle_reports)
        self._examined = loop.time()
        loop.call_later(LOOK_SECONDS, self._examine_workers)
        if self._link is not None:
            self.hosts.watch()
        self._launch_next()
        await self.until(lambda: not self.roster.absent() or any(w.last_end for w in self.roster))
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
        else:
            for launcher in self.hosts.launchers.values():
                launcher.hang_up()

    def kill(self) -> None:
        """Kill every process now. After this, a `stop` that is still waiting for the processes can continue."""
        self._begin_stop()
        for launcher in self._launchers:
            launcher.kill_all()

    def close(self) -> None:
        """End every process now, and wait until the fork server has ended."""
        self.state = FleetState.CLOSED
        asyncio.get_running_loop().remove_reader(self._launcher.fileno())
        for launcher in self._launchers:
            launcher.close()

    @property
    def _launchers(self) -> list[Launcher | RemoteLauncher]:
        return [self._launcher, *self.hosts.launchers.values()]

    def _launcher_of(self, worker: WorkerState) -> Launcher | RemoteLauncher:
        return self.hosts.launchers[worker.plan.host] if worker.plan.host else self._launcher

    @property
    def starting(self) -> bool:
        """Whether some workers have never been ready."""
        return self.state is FleetState.STARTING

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
        """Process id of the fork server on this host."""
        return self._launcher.pid

    def host_reports(self) -> list[HostReport]:
        """Reports on all hosts of the service except the main host."""
        return [HostReport(name, self.hosts.lease_age(name)) for name in self._run_dirs if name]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds. The condition is checked whenever `changed` is called."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def changed(self) -> None:
        """Make every waiting `until` check its condition again."""
        self._changed.set()

    # --- messages from workers ---

    def sender(
        self, message: Heartbeat | Pulse | Ready | StartFailed | ConnectionLost, received: Received
    ) -> WorkerState | None:
        """The worker that has sent a message. None if this process of the worker has ended, or if the message does not
        come from the worker's host.
        """
        worker = self.roster.process(message.worker, message.incarnation)
        return worker if worker is not None and worker.plan.host == received.host else None

    def _take_heartbeat(self, message: Heartbeat, received: Received) -> None:
        """Handle a heartbeat, which shows that the worker is alive and contains the worker's counters."""
        worker = self.sender(message, received)
        if worker is None:
            return
        self._note_life(worker)
        worker.heard = message.epoch
        worker.stats, worker.edges = message.stats, message.edges
        self.changed()

    def _take_pulse(self, message: Pulse, received: Received) -> None:
        """Handle a pulse, which shows that the main thread of a worker on a GPU makes progress."""
        worker = self.sender(message, received)
        if worker is not None and worker.vitals is not None:
            worker.vitals.pulse()

    def _take_ready(self, message: Ready, received: Received) -> None:
        """Handle a worker's message that it has loaded."""
        worker = self.sender(message, received)
        if worker is None:
            return
        self._note_life(worker)
        worker.ranks = message.ranks
        self._introduce(worker, message.remote_address)
        self.hosts.watch_ranks(worker.plan.host, message.pid, message.ranks)
        worker.became_ready(asyncio.get_running_loop().time(), message.seconds)
        if self.state is FleetState.STARTING:
            self._progress(message)
        else:
            what = "has been added" if worker.phase is Phase.JOINING else "is ready again"
            extra = fields(worker=worker.name, worker_pid=worker.pid)
            logger.info("worker %s %s", worker.name, what, extra=extra)
        self._launch_next()
        self.changed()

    def _take_refusal(self, message: StartFailed, received: Received) -> None:
        """Handle a worker's message that it could not load."""
        worker = self.sender(message, received)
        # the report of the worker's end may have come before this message
        if worker is None and self.state is FleetState.STARTING:
            worker = next(each for each in self.roster if each.name == message.worker)
        if worker is not None:
            worker.refusal = message.message
            self.changed()

    # --- addresses ---

    def _introduce(self, worker: WorkerState, remote_address: str) -> None:
        """If there are other hosts, announce the endpoint of a process that has loaded. The endpoint for other hosts is
        not known earlier. Then send the process the current endpoints of all other processes, because it may have
        missed announcements while it was loading.
        """
        if self._link is None:
            return
        worker.remote_address = remote_address
        self.roster.begin_epoch(worker)
        self._announce(worker)
        address = worker.address_from(OWN_HOST)
        self._mailbox.send(KnownHosts(self._keys), address)
        self._mailbox.send(ClockOffset(self.hosts.offset(worker.plan.host)), address)
        for other in sorted(self.roster, key=lambda other: other.moved):
            if other is not worker:
                self._mailbox.send(self.roster.announcement(other, worker.plan.host), address)

    def _announce(self, worker: WorkerState) -> None:
        """Announce the endpoint of a worker, or its removal, to all other workers."""
        for other in self.roster:
            address = other.address_from(OWN_HOST)
            if other is not worker and other.running and address:
                self._mailbox.send(self.roster.announcement(worker, other.plan.host), address)

    def _tell_all(self, message: Message, host: str | None = None) -> None:
        """Send a message to every worker on `host` that can be reached. None means all hosts."""
        addresses = {
            worker.address_from(OWN_HOST)
            for worker in self.roster
            if worker.running and host in (None, worker.plan.host)
        }
        self._mailbox.send(message, *addresses - {""})

    # --- other hosts ---

    def join(self, member: Member) -> None:
        """Add a host that has joined again, and start its workers."""
        if self.stopping:
            return
        self.hosts.lose(member.name, "its agent has joined again over a new connection")
        self._run_dirs[member.name] = member.run_dir
        self._keys[member.name] = member.public_key
        self._tell_keys()
        self.hosts.join(member)
        self.hosts.open(member.name, self._plan.preload(member.name))
        for worker in self.roster:
            if worker.plan.host == member.name:
                worker.host_lost = False
                self.roster.place(worker)
                if worker.restarts.total:
                    self._launch(worker)
        self._launch_next()  # the others start in the order of the plan
        logger.info("host %s has joined again", member.name)
        self.changed()

    def _lose_host(self, name: str, reason: str) -> None:
        if not self.stopping:
            logger.error("host %s is lost: %s", name, reason)
        self._keys.pop(name, None)
        self._tell_keys()
        for worker in list(self.roster):
            if worker.plan.host == name:
                worker.host_lost = True
                if worker.running:
                    self._end_process(worker, f"was lost with the host {name}: {reason}", [])
        self.changed()

    def _tell_keys(self) -> None:
        """Send all processes the keys of the hosts that belong to the service now."""
        known = KnownHosts(dict(self._keys))
        if self._mailbox.network is not None:
            self._mailbox.network.allow(known.keys)
        self._tell_all(known)

    def _move_clock(self, name: str, offset: float) -> None:
        self._tell_all(ClockOffset(offset), name)

    # --- reports from the fork servers ---

    def _handle_reports(self, host: str = OWN_HOST) -> None:
        launcher = self.hosts.launchers[host] if host else self._launcher
        for report in launcher.reports():
            match report:
                case Preloaded():
                    self._launcher_restarts[host].ready(asyncio.get_running_loop().time())
                    # the worker that needs the module will report the error
                    for module, reason in report.failed.items():
                        logger.warning("could not import %s before the workers started: %s", module, reason)
                    if self.state is FleetState.STARTING and host == OWN_HOST:
                        self._progress(report)
                case Launched():
                    worker = self.roster.process(report.worker, report.incarnation)
                    if worker is not None:
                        worker.pid = report.pid
                        worker.vitals = self._new_vitals(worker, report.pid)
                        if self.stopping or worker.phase is Phase.LEAVING:
                            launcher.kill(report.pid)
                case Exited():
                    worker = self.roster.process(report.worker, report.incarnation)
                    if worker is not None:
                        self._end_process(worker, _describe_exit(report.code), report.last_words)
        if launcher.state is LauncherState.GONE:
            self._end_launcher(host)
        self.changed()

    def _new_vitals(self, worker: WorkerState, pid: int) -> Vitals:
        host = worker.plan.host
        if not host:
            return Vitals(pid, self._bounds, on_gpu=bool(worker.plan.gpus))

        def sample(pid: int, _: Collection[int]) -> Sample | None:
            return self.hosts.sample(host, pid)

        return Vitals(pid, self._bounds, sample, on_gpu=bool(worker.plan.gpus))

    # --- ends and restarts ---

    def _end_process(self, worker: WorkerState, how: str, words: list[str]) -> None:
        """Handle the end of a worker's process: fail its requests, and plan its next process."""
        self._mailbox.take(LAST_MESSAGES)
        pid, killed_for = worker.pid, worker.killed_for
        how = f"{killed_for} and was killed" if killed_for is not None else how
        self._mailbox.forget(worker.address_from(OWN_HOST))
        worker.process_ended(how, words)
        if not self.stopping:
            logger.error("worker %s %s", worker.name, worker.last_end, extra=fields(worker=worker.name, worker_pid=pid))
        if self.state is FleetState.SERVING:
            self._lost(worker)
            if worker.phase is Phase.STAYING:
                self._restart(worker)
            else:
                self._remove(worker)

    # --- replicas that come and go ---

    def add(self, plan: WorkerPlan) -> None:
        """Add a worker of a new replica while the other workers run."""
        worker = self.roster.add(plan)
        worker.host_lost = bool(plan.host) and plan.host not in self.hosts.members
        self._announce(worker)
        self._launch_next()
        self.changed()

    def retire(self, worker: WorkerState) -> None:
        """End and remove a worker that has no requests any more."""
        worker.phase = Phase.LEAVING
        if worker.ready:
            self._mailbox.send(Shutdown(), worker.address_from(OWN_HOST))
        elif worker.pid is not None:  # a worker that is loading does not read messages
            self._launcher_of(worker).kill(worker.pid)
        elif not worker.running:
            self._remove(worker)

    def _remove(self, worker: WorkerState) -> None:
        self.roster.remove(worker)
        self._announce(worker)
        self.changed()

    def _restart(self, worker: WorkerState) -> None:
        """Plan the next process of a worker, and announce this process to the other workers."""
        self.roster.move(worker)
        self._announce(worker)
        if worker.host_lost:  # the worker starts when its host has joined again
            return
        loop = asyncio.get_running_loop()
        pause = worker.restarts.ended(loop.time())
        worker.ordered = loop.time() + pause
        if worker.restarts.looping:
            extra = fields(worker=worker.name, restarts=worker.restarts.total)
            row = worker.restarts.in_a_row
            logger.error("worker %s ended %d times in a row; next try in %g s", worker.name, row, pause, extra=extra)
            for line in worker.last_words:
                logger.error("last output of worker %s: %s", worker.name, line, extra=fields(worker=worker.name))
        loop.call_later(pause, self._launch_again, worker)

    def _launch_again(self, worker: WorkerState) -> None:
        """Launch a worker after a pause, if it has not been launched in the meantime, and its host is not lost."""
        if not worker.running and not worker.host_lost:
            self._launch(worker)

    def _launch_next(self) -> None:
        """Launch the workers that have not started yet and need not wait any more. A worker waits until all workers in
        `plan.after` are ready.
        """
        ready = {worker.name for worker in self.roster if worker.ready}
        names = {worker.name for worker in self.roster}
        for worker in self.roster:
            waits = worker.running or worker.host_lost or worker.restarts.total
            if not waits and not names.intersection(worker.plan.after) - ready:
                self._launch(worker)

    def _launch(self, worker: WorkerState) -> None:
        if self.stopping or worker not in self.roster:
            return
        worker.running = True
        worker.ordered = asyncio.get_running_loop().time()
        worker.heard = self.roster.moves
        host = worker.plan.host
        assignment = Assignment(
            plan=worker.plan,
            incarnation=worker.incarnation,
            graph_path=self._plan.graph_path,
            model_path=self.hosts.members[host].model_path if host else self._model_path,
            run_dir=self._run_dirs[host],
            addresses=self.roster.addresses(host),
            home=self._mailbox.remote_address if host else self._mailbox.address,
            groups=self.roster.groups(),
            epoch=self.roster.moves,
            log_level=self._plan.log_level,
            log_format=self._plan.log_format,
            traced=self._plan.trace.on,
            link=self._link_of(host),
            clock_offset=self.hosts.offset(host),
        )
        self._launcher_of(worker).launch(assignment)

    def _link_of(self, host: str) -> HostLink | None:
        """The link of the worker processes on `host`. An agent adds the secret key of its host."""
        if self._link is None or not host:
            return self._link and structs.replace(self._link, hosts=dict(self._keys))
        member = self.hosts.members[host]
        keys = KeyPair(member.public_key, "")
        return structs.replace(self._link, host=host, keys=keys, listen=member.listen, hosts=dict(self._keys))

    def _end_launcher(self, host: str) -> None:
        """Handle the end of the fork server of a host, which has also ended all workers on the host. Plan a new fork
        server.
        """
        loop = asyncio.get_running_loop()
        if not host:
            loop.remove_reader(self._launcher.fileno())
        if not self.stopping:
            which = f"of the host {host}" if host else f"(pid {self._launcher.pid})"
            logger.error("the fork server %s has ended", which)
        for worker in list(self.roster):
            if worker.running and worker.plan.host == host:
                self._end_process(worker, "ended because the fork server ended", [])
        if self.state is FleetState.SERVING:
            loop.call_later(self._launcher_restarts[host].ended(loop.time()), self._replace_launcher, host)

    def _replace_launcher(self, host: str) -> None:
        if self.stopping or (host and self.hosts.launchers[host].state is not LauncherState.GONE):
            return
        if host and host not in self.hosts.members:  # the host is lost
            return
        if host:
            self.hosts.open(host, self._plan.preload(host))
        else:
            self._launcher.close()
            self._launcher = self._new_launcher()
            asyncio.get_running_loop().add_reader(self._launcher.fileno(), self._handle_reports)
        for worker in self.roster:
            # the earlier order to start these workers was lost, because the old fork server had already ended
            if worker.running and worker.plan.host == host:
                self._launch(worker)

    def _new_launcher(self) -> Launcher:
        return Launcher(self._run_dirs[OWN_HOST], self._plan.preload(OWN_HOST))

    # --- heartbeats ---

    def _note_life(self, worker: WorkerState) -> None:
        if worker.vitals is not None:
            worker.vitals.beat()

    def _examine_workers(self) -> None:
        """Kill the workers that hang, and the fork server if it has been stopped."""
        if self.state is FleetState.CLOSED:
            return
        loop = asyncio.get_running_loop()
        # If the main process was delayed, heartbeats of workers may still wait in its inbox. So the inbox is read
        # before the workers are examined.
        self._mailbox.take(LAST_MESSAGES)
        elapsed, self._examined = loop.time() - self._examined, loop.time()
        # While one worker compiles a kernel, other workers may wait for the same kernel.
        compiling = any(worker.vitals is not None and worker.vitals.compiles for worker in self.roster)
        for worker in self.roster:
            if worker.vitals is None or worker.killed_for is not None or worker.pid is None:
                continue
            worker.killed_for = worker.vitals.look(elapsed, worker.ranks, others_compile=compiling)
            if worker.killed_for is not None:
                extra = fields(worker=worker.name, worker_pid=worker.pid)
                logger.error("worker %s %s; killing it", worker.name, worker.killed_for, extra=extra)
                self._launcher_of(worker).kill(worker.pid)
                worker.hangs(worker.killed_for)
                if self.state is FleetState.SERVING:
                    self._lost(worker)  # report the loss now, because the process may take long to end
                self.changed()
        # The fork server sleeps most of the time, so sleeping is not a sign of a hang. But if a signal has stopped the
        # fork server, the fork server cannot carry out orders.
        stopped = self._launcher.state is not LauncherState.GONE and is_stopped(self._launcher.pid)
        self._launcher_stopped = self._launcher_stopped + min(elapsed, 2 * LOOK_SECONDS) if stopped else 0.0
        if self._launcher_stopped > self._bounds.silent_seconds:
            logger.error("the fork server (pid %s) is suspended by a signal; killing it", self._launcher.pid)
            self._launcher.kill_all()
        loop.call_later(LOOK_SECONDS, self._examine_workers)

    # --- the end ---

    def _begin_stop(self) -> None:
        if self.state is not FleetState.CLOSED:
            self.state = FleetState.STOPPING
        self.changed()

    async def _stop_workers(self, patience: float) -> None:
        self._mailbox.send(Shutdown(), *(worker.address_from(OWN_HOST) for worker in self.roster if worker.ready))
        for worker in self.roster:
            if worker.pid and not worker.ready:  # a worker that is still loading does not read messages
                self._launcher_of(worker).kill(worker.pid)
        try:
            async with asyncio.timeout(patience):
                await self.until(lambda: self._all_gone() or not self.pids)
        except TimeoutError:
            logger.warning("killing the workers %s, which have not ended within %g s", ", ".join(self.pids), patience)
        for launcher in self._launchers:
            launcher.hang_up()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANG_UP_SECONDS):
                await self.until(self._all_gone)

    def _all_gone(self) -> bool:
        return all(launcher.state is LauncherState.GONE for launcher in self._launchers)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    name = next((number.name for number in signal.Signals if number == -code), f"signal {-code}")
    return f"was killed by {name}{hint}"


def _quoted(words: list[str]) -> str:
    """The last lines of a process's output, as text to add at the end of a message."""
    return "".join(f"\n    {line}" for line in (["Its last output:", *words] if words else []))
