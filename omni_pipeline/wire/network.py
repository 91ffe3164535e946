"""Decides which other hosts may send messages to this process.

Between hosts, every connection uses CURVE: it is encrypted, and each end proves that it has the secret key of its host.
By default, ZeroMQ accepts any key. So this module runs a handler that accepts only the keys of an allowlist. For each
new connection, ZeroMQ sends the handler a request, at an address that ZeroMQ defines (ZeroMQ RFC 27, "ZAP"). If there
is no handler, ZeroMQ refuses all connections, because `remote` sets the options for this. So an error in the handler
cannot open the port.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping

import zmq
from msgspec import Struct
from zmq.utils import z85

from omni_pipeline.wire.keys import KEY_CHARACTERS, KeyPair

# Minimum time, in seconds, between two lines of the log about refused connections or messages.
LOG_SECONDS = 60.0

# The address at which ZeroMQ looks for the handler.
_HANDLER = "inproc://zeromq.zap.01"
_STOP = "inproc://omni-network-stop"
_VERSION = b"1.0"

logger = logging.getLogger(__name__)


class HostLink(Struct, frozen=True):
    """The data that a process needs to exchange messages with other hosts.

    Attributes:
        host: Name of the process's host.
        keys: Key pair of this host. All processes of a host share it: they run as one user, so they can read each
            other's memory.
        listen: IP address to bind. A wildcard such as ``0.0.0.0`` also needs `reachable_as`.
        ports: The first and the last port that the process may bind. ``(0, 0)`` allows any free port.
        hosts: The public key of each host that may send messages now, by name.
        lease_seconds: A host that is silent for this time counts as dead.
        reachable_as: IP address at which other hosts reach this host. Empty if other hosts reach this host at `listen`.
    """

    host: str
    keys: KeyPair
    listen: str
    ports: tuple[int, int]
    hosts: dict[str, str]
    lease_seconds: float
    reachable_as: str = ""


class Refusals:
    """Counts refused connections or messages, and writes a line to the log once in a while.

    Args:
        what: The plural noun that the log uses.

    Attributes:
        count: Number of refusals.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._next_line = 0.0
        self.count = 0

    def add(self, reason: str) -> None:
        """Count one refusal. `reason` must not contain the content of a message."""
        self.count += 1
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + LOG_SECONDS
            logger.warning(
                "refused %d %s since the start; the reason of the last refusal: %s", self.count, self._what, reason
            )


class Network:
    """The other hosts with which this process may exchange messages. A process has at most one `Network`, and creates
    the `Network` before its inbox.

    Args:
        context: The process's ZeroMQ context.
        link: The data from the process's assignment.

    Attributes:
        link: The argument `link`. `allow` does not change it.
        offset: Seconds to add to this host's `time.monotonic` to get the main host's clock. The worker sets this value.
        refusals: The connections that were refused because of their key.

    Raises:
        ValueError: `link.hosts` has a malformed key, or the same key twice.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], link: HostLink) -> None:
        self.link = link
        self.offset = 0.0
        self.refusals = Refusals("connections from other hosts")
        self._names: dict[str, str] = {}
        self.allow(link.hosts)
        handler, stopped = context.socket(zmq.REP), context.socket(zmq.PAIR)
        self._stop = context.socket(zmq.PAIR)
        try:
            handler.bind(_HANDLER)
            stopped.bind(_STOP)
            self._stop.connect(_STOP)
        except zmq.ZMQError:  # the context already has a network
            for socket in (handler, stopped, self._stop):
                socket.close(linger=0)
            raise
        self._thread = threading.Thread(target=self._answer, args=(handler, stopped), name="network", daemon=True)
        self._thread.start()

    def allow(self, hosts: Mapping[str, str]) -> None:
        """Replace the allowlist by `hosts`, the public key of each host by name.

        This affects each message that the inbox receives afterwards, even over a connection that exists already.

        Raises:
            ValueError: a key is malformed, two hosts have the same key, or the name of a host is empty. (An empty name
                means this host.) In all three cases, the allowlist does not change.
        """
        for name, key in hosts.items():
            if not name:
                raise ValueError(f"the host with the key {key} has no name")
            if len(key) != KEY_CHARACTERS:
                raise ValueError(f"the public key of host {name} does not have {KEY_CHARACTERS} characters")
        names = {key: name for name, key in hosts.items()}
        if len(names) != len(hosts):
            raise ValueError("two hosts have the same public key")
        self._names = names  # one assignment, because the handler's thread reads the dictionary

    def host_of(self, public_key: str) -> str | None:
        """The name of the host with this key, or None if no host with this key may send messages now."""
        return self._names.get(public_key)

    def close(self) -> None:
        """End the thread. Afterwards, all new connections are refused. Call this before the context is terminated."""
        if self._stop.closed:
            return
        with contextlib.suppress(zmq.Again, zmq.ContextTerminated):  # raised if the thread has ended already
            self._stop.send(b"", zmq.NOBLOCK)
        self._thread.join()
        self._stop.close(linger=0)

    def _answer(self, handler: zmq.Socket[bytes], stopped: zmq.Socket[bytes]) -> None:
        """Answer ZeroMQ's requests until `close` is called or the context ends."""
        poller = zmq.Poller()
        poller.register(handler, zmq.POLLIN)
        poller.register(stopped, zmq.POLLIN)
        try:
            while stopped not in dict(poller.poll()):
                handler.send_multipart(self._decide(handler.recv_multipart()))
        except zmq.ContextTerminated:
            pass
        finally:
            handler.close(linger=0)
            stopped.close(linger=0)

    def _decide(self, request: list[bytes]) -> list[bytes]:
        """The answer to one request. The user id of an accepted connection is its public key."""
        _, number, _, address, _, mechanism, *credentials = request
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
        if self.host_of(key) is None:
            self.refusals.add(f"{address.decode()} has an unknown key")
            return [_VERSION, number, b"400", b"unknown key", b"", b""]
        return [_VERSION, number, b"200", b"OK", key.encode(), b""]
