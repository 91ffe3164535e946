"""Simulates hosts: each host is a context with its own network, inbox and outbox, and connects over 127.0.0.1."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zmq

from omni_pipeline.wire.keys import KeyPair, new_key_pair
from omni_pipeline.wire.network import HostLink, Network
from omni_pipeline.wire.transport import Inbox, Outbox, Received

SECONDS = 10.0


class Host:
    """One process of a host. Only the hosts in `known` may send messages to this host."""

    def __init__(
        self,
        run_dir: Path,
        name: str,
        known: dict[str, str],
        *,
        keys: KeyPair | None = None,
        lease: float = 5.0,
        ports: tuple[int, int] = (0, 0),
    ) -> None:
        self.keys = keys or new_key_pair()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.network = Network(self.context, HostLink(name, self.keys, "127.0.0.1", ports, known, lease))
        self.inbox = Inbox(self.context, f"ipc://{run_dir}/{name}", self.network)
        self.outbox = Outbox(self.context, self.network)

    @property
    def port(self) -> int:
        return int(self.inbox.remote_address.split()[0].rpartition(":")[2])

    def close(self) -> None:
        self.inbox.close()
        self.outbox.close(linger_ms=0)
        self.network.close()
        self.context.term()

    def take(self) -> Received:
        """The next message. Fails if no message comes."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            self.inbox.wait(deadline - time.monotonic())
            received = self.inbox.receive()
            if received is not None:
                return received
        raise AssertionError("no message has arrived")

    def take_all(self, seconds: float) -> list[Received]:
        """All messages that arrive in this time."""
        deadline = time.monotonic() + seconds
        taken: list[Received] = []
        while (left := deadline - time.monotonic()) > 0:
            self.inbox.wait(left)
            taken += self.inbox.drain(1000)
        return taken

    def wait_lost(self, seconds: float) -> list[str]:
        """The lost addresses. The method waits only for events of the sockets' monitors. So a test fails if a monitor
        does not report a loss.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            zmq.zmq_poll([(monitor, zmq.POLLIN) for monitor in self.outbox.monitors], round(left * 1000))
            if lost := self.outbox.lost():
                return lost
        raise AssertionError(f"no loss was reported within {seconds} s")


def contents(received: Iterable[Received]) -> list[list[bytes]]:
    return [[bytes(frame) for frame in one.frames] for one in received]


class Relay:
    """A TCP proxy in a thread, between a host's port and the processes that send to it."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._wake, self._woken = os.pipe()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._frozen = self._cutting = self._closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def address(self, inbox: Inbox) -> str:
        """The address of `inbox` through this proxy."""
        return f"tcp://127.0.0.1:{self.port} {inbox.remote_address.split()[1]}"

    def freeze(self) -> None:
        """Stop forwarding data and accepting connections, but keep all connections open."""
        self._frozen = True
        os.write(self._woken, b"x")

    def cut(self) -> None:
        """End all connections. Later connections are forwarded again."""
        self._cutting = True
        os.write(self._woken, b"x")

    def close(self) -> None:
        self._closing = True
        os.write(self._woken, b"x")
        self._thread.join()
        self._end_pairs()
        self._listener.close()
        os.close(self._wake)
        os.close(self._woken)

    def _end_pairs(self) -> None:
        for one in self._pairs:
            one.close()
        self._pairs.clear()

    def _run(self) -> None:
        while not self._closing:
            sources: list[Any] = [] if self._frozen else [self._listener, *self._pairs]
            for source in select.select([self._wake, *sources], [], [])[0]:
                if source == self._wake:
                    os.read(self._wake, 1)
                elif source is self._listener:
                    near, far = self._listener.accept()[0], socket.create_connection(("127.0.0.1", self._target))
                    self._pairs[near], self._pairs[far] = far, near
                elif source in self._pairs:
                    self._forward(source)
            if self._cutting:
                self._cutting = False
                self._end_pairs()

    def _forward(self, source: socket.socket) -> None:
        other = self._pairs[source]
        try:
            data = source.recv(1 << 16)
            other.sendall(data)
        except OSError:
            data = b""
        if not data:
            for one in (source, other):
                del self._pairs[one]
                one.close()
