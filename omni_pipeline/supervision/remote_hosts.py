"""The main process's interface to the agents of other hosts: their fork servers, their leases and their clocks.

The main process sends each agent a ping several times in `lease_seconds`, and the agent answers with a pong. If the
main process gets no pong for `lease_seconds`, it counts the host as lost, and ends the requests of the host's workers.
If the agent gets no ping for `lease_seconds`, it ends all workers of its host. So a lost host soon has no workers any
more. The connection to an agent may also end earlier, for example because the agent was killed. Then the host counts as
lost at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping

import msgspec
from msgspec import Struct, field

from omni_pipeline.os_process import ProcessUsage
from omni_pipeline.supervision.fork_server import Kill, Launch, Order, Preloaded, Report
from omni_pipeline.supervision.fork_server_client import LauncherState
from omni_pipeline.supervision.mailbox import Mailbox
from omni_pipeline.wire.host_messages import (
    CloseForkServer,
    ForkServerEnded,
    ForkServerPacket,
    HostLeaves,
    HostPing,
    HostPong,
    HostSamples,
    OpenForkServer,
    Sample,
    ServerEnds,
    WatchRanks,
)
from omni_pipeline.wire.transport import Received
from omni_pipeline.worker.process import Assignment

# Number of pings in `lease_seconds`.
PINGS_PER_LEASE = 5

# Number of latest pings to keep for each host. The offset of a host's clock is computed from the fastest of these
# pings.
CLOCK_PINGS = 16

# A new offset of a clock is reported if it differs from the reported offset by more than this number of seconds.
CLOCK_STEP = 0.0005


class Member(Struct, frozen=True):
    """A host that has joined the service.

    Attributes:
        public_key: The public key of the host's processes.
        address: Endpoint of the agent's inbox.
        run_dir: The agent's directory for sockets and files.
        model_path: Directory of the checkpoint on the host.
        listen: The address at which the host's processes listen for other hosts.
    """

    name: str
    public_key: str
    address: str
    run_dir: str
    model_path: str
    listen: str


class HostReport(Struct, frozen=True):
    """The state of another host.

    Attributes:
        lease_age: Seconds since the latest answer of the host's agent; None if the host is lost.
    """

    host: str
    lease_age: float | None

    @property
    def up(self) -> bool:
        return self.lease_age is not None


class RemoteLauncher:
    """The fork server of another host. It has the interface of `fork_server_client.Launcher`.

    Args:
        member: The host.
        number: Number of this fork server. Each fork server of a host has a different number.
        preload: Modules to import once for all workers.
    """

    def __init__(self, mailbox: Mailbox, member: Member, number: int, preload: tuple[str, ...]) -> None:
        self.state = LauncherState.IMPORTING
        self.number = number
        self._mailbox = mailbox
        self._address = member.address
        self._reports: list[Report] = []
        self._decoder = msgspec.msgpack.Decoder(Report)
        mailbox.send(OpenForkServer(number, list(preload)), self._address)

    def launch(self, assignment: Assignment) -> None:
        """Order the start of a worker."""
        self._order(Launch(assignment))

    def kill(self, pid: int) -> None:
        """Order the fork server to kill a worker process."""
        self._order(Kill(pid))

    def take(self, packet: bytes) -> None:
        """Store a report that the agent has passed on."""
        report = self._decoder.decode(packet)
        if isinstance(report, Preloaded):
            self.state = LauncherState.READY
        self._reports.append(report)

    def reports(self) -> list[Report]:
        """The reports since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def hang_up(self) -> None:
        """End the agent. `state` is GONE when the agent has ended its fork server."""
        if self.state is not LauncherState.GONE:
            self._mailbox.send(ServerEnds(), self._address)

    def kill_all(self) -> None:
        """End the fork server of the host at once. Then all workers of the host end too."""
        if self.state is not LauncherState.GONE:
            self._mailbox.send(CloseForkServer(self.number, at_once=True), self._address)

    def close(self) -> None:
        """Kill the fork server. No other method may be called afterwards."""
        self.kill_all()

    def _order(self, order: Order) -> None:
        if self.state is not LauncherState.GONE:
            self._mailbox.send(ForkServerPacket(self.number, msgspec.msgpack.encode(order)), self._address)


class _Contact(Struct):
    """What the main process knows about the agent of one host.

    Attributes:
        heard: Time of the latest pong.
        clocks: For the latest pings: the time until the pong arrived, and the offset of the clock.
        offset: The reported offset, in seconds: the time of the main host's clock minus the time of the host's clock.
        samples: The unread samples of the host's workers, by process id.
        usage: The latest use of resources, by process id.
    """

    member: Member
    heard: float
    clocks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=CLOCK_PINGS))
    offset: float = 0.0
    samples: dict[int, Sample] = {}
    usage: dict[int, ProcessUsage] = {}


class RemoteHosts:
    """The hosts that have joined and are not lost.

    Args:
        lease_seconds: Maximum time without a pong.
        reported: Called with the name of a host when its fork server has reported something or has ended.
        lost: Called with the name of a host that is lost, and the reason as the end of a sentence.
        clock_moved: Called with the name of a host and the new offset of its clock.

    Attributes:
        launchers: The fork server of each host, by the name of the host. A host that is lost keeps its last entry,
            whose state is GONE.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        lease_seconds: float,
        *,
        reported: Callable[[str], None],
        lost: Callable[[str, str], None],
        clock_moved: Callable[[str, float], None],
    ) -> None:
        self.launchers: dict[str, RemoteLauncher] = {}
        self._mailbox = mailbox
        self._lease = lease_seconds
        self._reported = reported
        self._lost = lost
        self._clock_moved = clock_moved
        self._contacts: dict[str, _Contact] = {}
        self._opened = 0
        mailbox.register(HostPong, self._take_pong)
        mailbox.register(ForkServerPacket, self._take_packet)
        mailbox.register(ForkServerEnded, self._take_end)
        mailbox.register(HostSamples, self._take_samples)
        mailbox.register(HostLeaves, self._take_leave)

    @property
    def members(self) -> Mapping[str, Member]:
        """The hosts that have joined and are not lost, by name."""
        return {name: contact.member for name, contact in self._contacts.items()}

    def join(self, member: Member) -> None:
        """Add a host that has joined, or has joined again."""
        self._contacts[member.name] = _Contact(member, time.monotonic())
        self._send_ping(member)

    def open(self, name: str, preload: tuple[str, ...]) -> RemoteLauncher:
        """Start a fork server on a host that has joined."""
        self._opened += 1
        launcher = RemoteLauncher(self._mailbox, self._contacts[name].member, self._opened, preload)
        self.launchers[name] = launcher
        return launcher

    def watch(self) -> None:
        """Begin to send pings. Call this method on the event loop."""
        self._ping()

    def lose(self, name: str, reason: str) -> None:
        """Count a host as lost. Does nothing if the host has already been lost."""
        contact = self._contacts.pop(name, None)
        if contact is None:
            return
        if name in self.launchers:
            self.launchers[name].state = LauncherState.GONE
        self._mailbox.forget(contact.member.address)
        self._lost(name, reason)

    def connection_lost(self, address: str) -> bool:
        """Note that the connection to `address` has ended. Returns whether this was the connection to an agent."""
        for name, contact in list(self._contacts.items()):
            if contact.member.address == address:
                self.lose(name, "the connection to its agent has ended")
                return True
        return False

    def offset(self, name: str) -> float:
        """Seconds to add to a time of a host's clock to get the time of the main host's clock."""
        contact = self._contacts.get(name)
        return contact.offset if contact is not None else 0.0

    def lease_age(self, name: str) -> float | None:
        """Seconds since the latest pong of a host; None if the host is lost."""
        contact = self._contacts.get(name)
        return time.monotonic() - contact.heard if contact is not None else None

    def sample(self, name: str, pid: int) -> Sample | None:
        """The latest sample of a worker process of a host. Each sample is returned only once; None if there is no new
        sample.
        """
        contact = self._contacts.get(name)
        return contact.samples.pop(pid, None) if contact is not None else None

    def usage(self, name: str, pid: int) -> ProcessUsage | None:
        """The latest known use of resources of a worker process of a host."""
        contact = self._contacts.get(name)
        return contact.usage.get(pid) if contact is not None else None

    def watch_ranks(self, name: str, pid: int, ranks: Collection[int]) -> None:
        """Send a host's agent the ids of the processes that share the work of a worker process."""
        contact = self._contacts.get(name)
        if contact is not None and ranks:
            self._mailbox.send(WatchRanks(pid, list(ranks)), contact.member.address)

    # --- pings ---

    def _ping(self) -> None:
        if self._mailbox.closed:
            return
        now = time.monotonic()
        for name, contact in list(self._contacts.items()):
            if now - contact.heard > self._lease:
                self.lose(name, f"its agent has not answered for {now - contact.heard:.1f} s")
            else:
                self._send_ping(contact.member)
        asyncio.get_running_loop().call_later(self._lease / PINGS_PER_LEASE, self._ping)

    def _send_ping(self, member: Member) -> None:
        self._mailbox.send(HostPing(time.monotonic(), self._mailbox.remote_address), member.address)

    def _take_pong(self, message: HostPong, received: Received) -> None:
        contact = self._contacts.get(received.host)
        if contact is None:
            return
        now = time.monotonic()
        contact.heard = now
        # The agent reads its clock between the two times of the main host. The fastest ping has the smallest error.
        contact.clocks.append((now - message.sent, (now + message.sent) / 2 - message.clock))
        _, offset = min(contact.clocks)
        if abs(offset - contact.offset) > CLOCK_STEP:
            contact.offset = offset
            self._clock_moved(received.host, offset)

    # --- other messages of agents ---

    def _take_packet(self, message: ForkServerPacket, received: Received) -> None:
        launcher = self._launcher(received.host, message.number)
        if launcher is not None:
            launcher.take(message.packet)
            self._reported(received.host)

    def _take_end(self, message: ForkServerEnded, received: Received) -> None:
        launcher = self._launcher(received.host, message.number)
        if launcher is not None:
            launcher.state = LauncherState.GONE
            self._reported(received.host)

    def _take_samples(self, message: HostSamples, received: Received) -> None:
        contact = self._contacts.get(received.host)
        if contact is not None:
            contact.samples, contact.usage = message.samples, message.usage

    def _take_leave(self, _: HostLeaves, received: Received) -> None:
        self.lose(received.host, "its operator has stopped the agent")

    def _launcher(self, name: str, number: int) -> RemoteLauncher | None:
        launcher = self.launchers.get(name)
        return launcher if launcher is not None and launcher.number == number else None
