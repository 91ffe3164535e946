"""The agent: the process that runs the workers of a host for a server on another host.

The agent joins the server with an invitation. Then it starts a fork server, and passes on the packets between the main
process and the fork server. If the agent gets no ping from the main process for `lease_seconds`, it ends all workers.
The reason is that the main process may count this host as lost, and no request may be computed twice. Then the agent
tries to join again with the key pair that it used before, so that it needs no new invitation.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import shutil
import signal
import socket
import time
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
import zmq
from msgspec import structs

from omni_pipeline import logs
from omni_pipeline.deployment.host_facts import detect_host
from omni_pipeline.errors import StartupError
from omni_pipeline.hosts.checkpoint_digest import digest
from omni_pipeline.hosts.invitation import Invitation
from omni_pipeline.hosts.joining import (
    WAITING_SECONDS,
    Admitted,
    Hello,
    Introduction,
    Refused,
    ToHost,
    Welcome,
    own_versions,
)
from omni_pipeline.os_process import ProcessUsage, set_title, usage
from omni_pipeline.supervision.fork_server import Exited, Kill, Launch, Launched, Order
from omni_pipeline.supervision.fork_server_client import Launcher, LauncherState
from omni_pipeline.supervision.hang_detection import is_stopped, take_sample
from omni_pipeline.supervision.mailbox import Mailbox
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.host_messages import (
    CloseForkServer,
    ForkServerEnded,
    ForkServerPacket,
    HostLeaves,
    HostPing,
    HostPong,
    HostSamples,
    KnownHosts,
    OpenForkServer,
    Sample,
    ServerEnds,
    WatchRanks,
)
from omni_pipeline.wire.keys import KeyPair, new_key_pair
from omni_pipeline.wire.network import HostLink
from omni_pipeline.wire.transport import MAIN, Received, make_run_dir

# Maximum time, in seconds, to wait for an answer of the server during the join.
ANSWER_SECONDS = 10.0

# After the server has become silent, the agent tries to join again for this number of seconds.
REJOIN_SECONDS = 60.0

SAMPLE_SECONDS = 1.0

# Maximum time, in seconds, that the fork server may take to end.
_HANG_UP_SECONDS = 2.0

Answer = TypeVar("Answer", Welcome, Admitted)

logger = logging.getLogger(__name__)


class _End(enum.Enum):
    """Why the agent has stopped serving."""

    SERVER_ENDS = "the server has ended"
    SILENCE = "no messages arrive from the server"
    STOPPED = "the operator has stopped the agent"


class _Silence(Exception):
    """Raised if the server does not answer during the join."""


async def run_agent(invitation: Invitation, listen: str = "") -> None:
    """Join the server of `invitation`, and run its workers on this host until the server ends or a signal arrives.

    Args:
        listen: The address at which this host's processes listen for other hosts, if the server's configuration
            contains no address for this host. Empty means the address from which this host reaches the server.

    Raises:
        StartupError: the server does not answer or refuses this host, or the checkpoint cannot be read.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    set_title(f"agent {invitation.host}")
    keys = new_key_pair()
    until = time.monotonic()
    while not stopping.is_set():
        try:
            end = await _join_and_serve(invitation, listen, keys, stopping)
        except _Silence:
            if time.monotonic() > until:
                raise StartupError(f"The server at {invitation.address} does not answer.") from None
            continue
        if end is not _End.SILENCE:
            logger.info("%s", end.value)
            return
        # a host that has joined once needs no token to join again
        invitation = structs.replace(invitation, token="")
        until = time.monotonic() + REJOIN_SECONDS
        logger.error("%s; the workers of this host have been ended, and the host tries to join again", end.value)


async def _join_and_serve(invitation: Invitation, listen: str, keys: KeyPair, stopping: asyncio.Event) -> _End:
    run_dir = make_run_dir()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    door = _Door(context, invitation, keys)
    agent: Agent | None = None
    try:
        welcome = await door.ask(Hello(invitation.host, invitation.token, own_versions()), Welcome, stopping)
        if welcome is None:
            return _End.STOPPED
        logs.configure(f"agent {invitation.host}", welcome.log_level, welcome.log_format)
        agent = Agent(run_dir, _link(invitation, listen, keys, welcome))
        agent.open()
        introduction = await asyncio.to_thread(_introduce, welcome, agent, run_dir)
        if await door.ask(introduction, Admitted, stopping) is None:
            return _End.STOPPED
        logger.info("joined the server at %s as host %s", invitation.address, invitation.host)
        if not await door.wait_for_start(agent.started, stopping):
            return _End.STOPPED
        return await agent.serve(stopping)
    finally:
        if agent is not None:
            agent.close()
        door.close()
        context.term()
        shutil.rmtree(run_dir, ignore_errors=True)


def _link(invitation: Invitation, listen: str, keys: KeyPair, welcome: Welcome) -> HostLink:
    return HostLink(
        host=invitation.host,
        keys=keys,
        listen=welcome.listen or listen or _own_address(invitation.address),
        ports=welcome.ports,
        hosts={MAIN: invitation.server_key},
        lease_seconds=welcome.lease_seconds,
    )


def _own_address(server: str) -> str:
    """The address of this host from which it reaches the server."""
    parts = urlsplit(server)
    family, kind, protocol, _, address = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # this sends nothing
        return str(probe.getsockname()[0])


def _introduce(welcome: Welcome, agent: Agent, run_dir: str) -> Introduction:
    path = os.path.abspath(welcome.model_path) if welcome.model_path else ""
    try:
        files = digest(path)
    except OSError as error:
        raise StartupError(
            f"Cannot read the checkpoint {path} ({error.strerror}): copy the server's checkpoint to this path, or set "
            f"hosts.{agent.host}.model_path in the server's configuration."
        ) from error
    return Introduction(
        facts=detect_host(with_gpus=welcome.uses_gpus),
        digest=files,
        address=agent.address,
        listen=agent.listen,
        run_dir=run_dir,
        model_path=path,
    )


class _Door:
    """The connection to the server's door; see `cluster`."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], invitation: Invitation, keys: KeyPair) -> None:
        self._decoder = msgspec.msgpack.Decoder(ToHost)
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt_string(zmq.CURVE_SERVERKEY, invitation.server_key)
        self._socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.public)
        self._socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)
        self._socket.setsockopt(zmq.IPV6, "[" in invitation.address)
        try:
            self._socket.connect(invitation.address)
        except zmq.ZMQError as error:
            raise StartupError(f"Cannot connect to {invitation.address}: {error.strerror}.") from error

    async def ask(self, message: Hello | Introduction, answer: type[Answer], stopping: asyncio.Event) -> Answer | None:
        """Send a message, and wait for the answer. Returns None if `stopping` is set before the answer.

        Raises:
            StartupError: the server refuses the host.
            _Silence: the server does not answer in time.
        """
        self._socket.send(msgspec.msgpack.encode(message))
        while not stopping.is_set():
            received = await self._receive(ANSWER_SECONDS, stopping)
            if isinstance(received, answer):
                return received
        return None

    async def wait_for_start(self, started: asyncio.Event, stopping: asyncio.Event) -> bool:
        """Wait until the service starts. Returns False if `stopping` is set before the start.

        Raises:
            _Silence: the server has gone.
        """
        while not started.is_set():
            if stopping.is_set():
                return False
            await self._receive(5 * WAITING_SECONDS, stopping, started)
        return True

    async def _receive(self, seconds: float, *events: asyncio.Event) -> ToHost | None:
        """The next message; None if one of `events` is set first."""
        deadline = time.monotonic() + seconds
        while not any(event.is_set() for event in events):
            with contextlib.suppress(zmq.Again):
                message = self._decoder.decode(self._socket.recv(zmq.NOBLOCK))
                if isinstance(message, Refused):
                    raise StartupError(f"The server refuses this host. {message.reason}")
                return message
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Silence
            await _readable(self._socket, left, events)
        return None

    def close(self) -> None:
        self._socket.close(linger=0)


async def _readable(source: zmq.Socket[bytes], seconds: float, events: tuple[asyncio.Event, ...]) -> None:
    """Wait until `source` may have a message or one of `events` is set, but at most for `seconds`."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    loop.add_reader(source.fileno(), arrived.set)
    # The descriptor becomes readable only when a new message arrives. But a message may have arrived before the call of
    # `add_reader`.
    if source.poll(0):
        arrived.set()
    waits = [asyncio.ensure_future(event.wait()) for event in (arrived, *events)]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(source.fileno())
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


class Agent:
    """Runs the fork server of this host for the main process.

    Args:
        run_dir: Directory for sockets and files.
        link: The link of this host's processes to other hosts.

    Attributes:
        host: Name of this host.
        listen: The address at which this host's processes listen for other hosts.
        started: Set when the main process has sent its first message.
    """

    def __init__(self, run_dir: str, link: HostLink) -> None:
        self.host = link.host
        self.listen = link.listen
        self.started = asyncio.Event()
        self._run_dir = run_dir
        self._link = link
        self._home = ""
        self._heard = 0.0
        self._end: asyncio.Future[_End] = asyncio.get_running_loop().create_future()
        self._launcher: Launcher | None = None
        self._number = 0
        self._stopped_seconds = 0.0  # how long the fork server has been stopped by a signal
        self._pids: set[int] = set()
        self._ranks: dict[int, list[int]] = {}
        self._orders = msgspec.msgpack.Decoder(Order)
        self._mailbox = Mailbox(run_dir, Codec({}), lambda _: None, link, only_from=MAIN)
        self._mailbox.register(HostPing, self._take_ping)
        self._mailbox.register(OpenForkServer, self._take_open)
        self._mailbox.register(CloseForkServer, self._take_close)
        self._mailbox.register(ForkServerPacket, self._take_packet)
        self._mailbox.register(WatchRanks, self._take_ranks)
        self._mailbox.register(KnownHosts, self._take_known_hosts)
        self._mailbox.register(ServerEnds, self._take_server_end)

    @property
    def address(self) -> str:
        """Endpoint of the agent's inbox for other hosts."""
        return self._mailbox.remote_address

    def open(self) -> None:
        """Begin to receive messages on the running event loop."""
        self._mailbox.open()

    async def serve(self, stopping: asyncio.Event) -> _End:
        """Run workers until the server ends or becomes silent, or until `stopping` is set. At the end, this host has no
        workers.
        """
        lease, samples = asyncio.ensure_future(self._watch_lease()), asyncio.ensure_future(self._send_samples())
        stop = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait((self._end, lease, stop), return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                self._mailbox.send(HostLeaves(), self._home)
                end = _End.STOPPED
            else:
                end = self._end.result() if self._end.done() else _End.SILENCE
            await self._end_fork_server(kindly=end is not _End.SILENCE)
            return end
        finally:
            for task in (lease, samples, stop):
                task.cancel()
            await asyncio.gather(lease, samples, stop, return_exceptions=True)

    def close(self) -> None:
        """Kill the fork server, and close the sockets."""
        self._kill_fork_server()
        self._mailbox.close()

    # --- the lease ---

    async def _watch_lease(self) -> None:
        """Return when the main process has been silent for too long."""
        while True:
            left = self._heard + self._link.lease_seconds - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left)

    def _take_ping(self, message: HostPing, _: Received) -> None:
        self._heard = time.monotonic()
        self._home = message.home
        self._mailbox.send(HostPong(message.sent, time.monotonic()), self._home)
        self.started.set()

    async def _send_samples(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            samples: dict[int, Sample] = {}
            used: dict[int, ProcessUsage] = {}
            for pid in self._pids:
                sample, resources = take_sample(pid, self._ranks.get(pid, ())), usage(pid)
                if sample is not None and resources is not None:
                    samples[pid], used[pid] = sample, resources
            self._mailbox.send(HostSamples(samples, used), self._home)
            self._look_after_fork_server()

    # --- the fork server ---

    def _look_after_fork_server(self) -> None:
        """Kill a fork server that has been stopped by a signal for `lease_seconds`, because it cannot carry out orders.
        The main process then orders another fork server.
        """
        stopped = self._launcher is not None and is_stopped(self._launcher.pid)
        self._stopped_seconds = self._stopped_seconds + SAMPLE_SECONDS if stopped else 0.0
        if self._launcher is not None and self._stopped_seconds > self._link.lease_seconds:
            logger.error("the fork server (pid %d) is suspended by a signal; killing it", self._launcher.pid)
            self._launcher.kill_all()

    def _take_open(self, message: OpenForkServer, _: Received) -> None:
        self._kill_fork_server()
        self._number = message.number
        self._launcher = Launcher(self._run_dir, tuple(message.preload))
        asyncio.get_running_loop().add_reader(self._launcher.fileno(), self._pass_reports)

    def _take_close(self, message: CloseForkServer, _: Received) -> None:
        if self._launcher is not None and message.number == self._number:
            self._launcher.kill_all()

    def _take_packet(self, message: ForkServerPacket, _: Received) -> None:
        if self._launcher is None or message.number != self._number:
            return
        match self._orders.decode(message.packet):
            case Launch(assignment=assignment):
                link = assignment.link
                if link is not None:  # only this host has its secret key, so the order lacks it
                    assignment = structs.replace(assignment, link=structs.replace(link, keys=self._link.keys))
                self._launcher.launch(assignment)
            case Kill(pid=pid):
                self._launcher.kill(pid)

    def _pass_reports(self) -> None:
        assert self._launcher is not None
        for report in self._launcher.reports():
            if isinstance(report, Launched):
                self._pids.add(report.pid)
            elif isinstance(report, Exited):
                # the report does not contain the process id, so /proc shows which processes have ended
                self._pids = {pid for pid in self._pids if os.path.exists(f"/proc/{pid}")}
            self._mailbox.send(ForkServerPacket(self._number, msgspec.msgpack.encode(report)), self._home)
        if self._launcher.state is LauncherState.GONE:
            self._kill_fork_server()
            self._mailbox.send(ForkServerEnded(self._number), self._home)

    def _take_ranks(self, message: WatchRanks, _: Received) -> None:
        self._ranks[message.pid] = message.ranks

    def _take_known_hosts(self, message: KnownHosts, _: Received) -> None:
        assert self._mailbox.network is not None
        self._mailbox.network.allow(message.keys)

    def _take_server_end(self, _: ServerEnds, __: Received) -> None:
        if not self._end.done():
            self._end.set_result(_End.SERVER_ENDS)

    async def _end_fork_server(self, *, kindly: bool) -> None:
        """End the fork server and the workers of this host.

        Args:
            kindly: Whether the fork server may clean up.
        """
        launcher = self._launcher
        if launcher is None:
            return
        if kindly:
            launcher.hang_up()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HANG_UP_SECONDS):
                    await self._gone(launcher)
        self._kill_fork_server()
        self._mailbox.send(ForkServerEnded(self._number), self._home)

    async def _gone(self, launcher: Launcher) -> None:
        """Wait until the fork server has ended."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(launcher.fileno())
        while launcher.state is not LauncherState.GONE:
            readable = asyncio.Event()
            loop.add_reader(launcher.fileno(), readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(launcher.fileno())
            launcher.reports()

    def _kill_fork_server(self) -> None:
        if self._launcher is not None:
            asyncio.get_running_loop().remove_reader(self._launcher.fileno())
            self._launcher.close()
            self._launcher = None
            self._pids.clear()
            self._ranks.clear()
