"""Defines the messages between the main process and the agents of other hosts, and the messages about connections
between hosts.

An agent runs the fork server of its host. The agent passes on the packets that the main process and this fork server
send to each other. So the main process starts a worker on another host with the same order as a worker on its own host.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from omni_pipeline.os_process import ProcessUsage


class HostPing(Struct, tag="host_ping"):
    """The main process sends this message to every agent several times in `lease_seconds`. An agent that gets no ping
    for `lease_seconds` ends all workers of its host.

    Attributes:
        sent: Time of sending, by the clock of the main host (`time.monotonic`).
        home: Endpoint of the main process.
    """

    sent: float
    home: str


class HostPong(Struct, tag="host_pong"):
    """An agent's answer to a `HostPing`.

    Attributes:
        sent: The value of `sent` in the ping.
        clock: Time of answering, by the clock of the agent's host.
    """

    sent: float
    clock: float


class OpenForkServer(Struct, tag="open_fork_server"):
    """Orders an agent to start a fork server. If a fork server runs, the agent ends it first.

    Attributes:
        number: Number of the order. The agent puts this number into all messages about this fork server. So a message
            about an earlier fork server is recognised.
        preload: Modules that the fork server imports once for all workers.
    """

    number: int
    preload: list[str]


class CloseForkServer(Struct, tag="close_fork_server"):
    """Orders an agent to end its fork server. The workers of the host end too.

    Attributes:
        at_once: Whether to kill the fork server, instead of letting it end by itself.
    """

    number: int
    at_once: bool = False


class ForkServerPacket(Struct, tag="fork_server_packet"):
    """An order for an agent's fork server, or a report from it: see `supervision.fork_server`."""

    number: int
    packet: bytes


class ForkServerEnded(Struct, tag="fork_server_ended"):
    """Reports that an agent's fork server has ended. All workers of the host have ended too."""

    number: int


class Sample(Struct, frozen=True):
    """The state of a process at one moment.

    Attributes:
        state: The letter for the state of the process in ``/proc``.
        cpu_seconds: CPU time of the process and of all its descendants.
        helper_seconds: The part of `cpu_seconds` that belongs to descendants other than ranks.
        faults: Number of page faults of the process and its ranks.
    """

    state: str
    cpu_seconds: float
    helper_seconds: float = 0.0
    faults: int = 0


class HostSamples(Struct, tag="host_samples"):
    """An agent sends this message once a second. It contains the state of each worker process of its host.

    Attributes:
        samples, usage: By process id.
    """

    samples: dict[int, Sample]
    usage: dict[int, ProcessUsage]


class WatchRanks(Struct, tag="watch_ranks"):
    """Gives an agent the ids of the processes that share the work of the worker process `pid`. The agent needs them for
    the samples of this process.
    """

    pid: int
    ranks: list[int]


class HostLeaves(Struct, tag="host_leaves"):
    """An agent sends this message before it ends, because an operator has stopped it."""


class ServerEnds(Struct, tag="server_ends"):
    """The main process sends this message to every agent at its end. The agent then ends too."""


class KnownHosts(Struct, tag="known_hosts"):
    """Contains the public key of every host that belongs to the service now. From now on, the process that receives
    this message accepts messages only from these hosts.

    Attributes:
        keys: The public keys by the name of the host.
    """

    keys: dict[str, str]


class ClockOffset(Struct, tag="clock_offset"):
    """Gives a worker the offset of its host's clock. `seconds` is the time of the main host's clock minus the time of
    the clock of the worker's host.
    """

    seconds: float


class ConnectionLost(Struct, tag="connection_lost"):
    """Reports that the connection over which `worker` sends to another host has ended. Messages that had been sent over
    this connection may not have arrived.

    Attributes:
        stages: The stages of the process at the other end of the connection; empty for the main process.
        replica: The replica of `stages`.
    """

    worker: str
    incarnation: int
    stages: list[str]
    replica: int = 0


HostMessage: TypeAlias = (
    HostPing
    | HostPong
    | OpenForkServer
    | CloseForkServer
    | ForkServerPacket
    | ForkServerEnded
    | HostSamples
    | WatchRanks
    | HostLeaves
    | ServerEnds
    | KnownHosts
    | ClockOffset
    | ConnectionLost
)
