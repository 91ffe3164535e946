"""ZeroMQ sockets between processes. Each process has one inbox. For each other process to which it sends messages, a
process has one connection to the inbox of that process.

Sending never blocks, because the sockets have no high-water mark. A high-water mark is not needed: admission limits the
number of requests, and so limits the number of messages in transit.

All messages of a step to one process are sent as one parcel and arrive together, so that the receiver's next step can
use all of these messages. If each message were sent separately, the receiver would wake up for the first message, and
compute a step with only this message. In a ring of stages, batches would then become smaller in every round. A parcel
begins with a frame that contains the time of sending and each message's number of frames. The frames of the messages
follow.

Processes of one host use Unix sockets (`ipc`) in a private directory. An inbox with a `Network` also receives messages
from other hosts, over TCP with CURVE. The module `remote` sets up these connections.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, NamedTuple

import msgspec
import zmq
from msgspec import Meta, Struct

from omni_pipeline.errors import StartupError
from omni_pipeline.wire.network import Network, Refusals
from omni_pipeline.wire.remote import Connection, cut, divide, is_remote, join, listen, port_of
from omni_pipeline.wire.tensor import Buffer

# The name of the main process's inbox. Workers' inboxes have the names of the workers.
MAIN = "main"

# Frames with fewer bytes are copied. A copy takes less time than keeping track of a frame until it is sent.
COPY_BELOW_BYTES = 16 * 1024

# Maximum time, in milliseconds, that a closing process waits until its last messages are sent.
LINGER_MS = 500

# Each time the inbox has refused this number of parcels, the inbox ends the connection over which the latest refused
# parcel has arrived. Otherwise, a host that is not allowed any more but never stops sending could keep this process
# busy. If a dead host has sent fewer parcels, these parcels are only dropped.
CUT_PARCELS = 1000

# ZeroMQ's name for the other end of an ipc connection begins with this text. For TCP it is the numeric IP address.
_LOCAL = "localhost:"


class _Label(Struct, array_like=True):
    """The first frame of a parcel.

    Attributes:
        sent: Time at which the parcel was sent. Over TCP, this is the time of the main host's clock. Over ipc, it is
            the time of this host's clock, because processes of one host may get a new clock offset at different times.
        counts: Number of frames of each message.
        pieces: Number of pieces of each frame that was divided, by the frame's index.
    """

    sent: float
    counts: list[Annotated[int, Meta(ge=0)]]
    pieces: dict[int, int] = {}


_ENCODER = msgspec.msgpack.Encoder()
_LABELS = msgspec.msgpack.Decoder(_Label)


class Received(NamedTuple):
    """One received message.

    Attributes:
        frames: The message's read-only frames. The frames own their memory.
        sent: Time at which the message was sent (`time.monotonic` of this host). All processes of a host share this
            clock.
        host: Name of the host that has sent the message; empty for a message over ipc.
    """

    frames: list[memoryview]
    sent: float
    host: str = ""

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return sum(frame.nbytes for frame in self.frames)


def make_run_dir() -> str:
    """A new private directory (mode 0700) for the sockets of one service. The caller has to remove it."""
    return tempfile.mkdtemp(prefix="sgl-omni-")


def endpoint(run_dir: str, worker: str, incarnation: int) -> str:
    """The address of the inbox of a worker's process number `incarnation`.

    A restarted worker gets a new address, so messages for its previous process do not reach it.

    Raises:
        StartupError: the path is longer than the operating system allows for a socket.
    """
    path = os.path.join(run_dir, f"{worker}.{incarnation}")
    if len(os.fsencode(path)) > zmq.IPC_PATH_MAX_LEN:
        raise StartupError(
            f"The socket path {path} is longer than the {zmq.IPC_PATH_MAX_LEN} bytes that the system allows: "
            "set TMPDIR to a directory with a shorter path."
        )
    return f"ipc://{path}"


class Inbox:
    """The socket on which a process receives messages. Each process has one inbox.

    Args:
        context: The process's ZeroMQ context.
        address: Endpoint to bind, such as ``ipc:///run/x`` or ``tcp://127.0.0.1:*``.
        network: Needed to receive messages from other hosts. Then `address` must be an ipc endpoint.

    Attributes:
        address: The bound endpoint, with the real port instead of a wildcard.
        remote_address: The address for processes of other hosts: a TCP endpoint, a space, this host's public key. Empty
            without a network.

    Raises:
        StartupError: the network's address cannot be bound, or all its ports are in use.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, network: Network | None = None) -> None:
        self._network = network
        self._refusals = Refusals("messages from other hosts")
        self._unpacked: deque[Received] = deque()
        self._socket = context.socket(zmq.PULL)
        self._socket.set_hwm(0)
        self._socket.bind(address)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.remote_address = ""
        if network is not None:
            try:
                self.remote_address = listen(self._socket, network)
            except BaseException:
                self.close()
                raise

    @property
    def refused(self) -> int:
        """Number of parcels that were dropped: they came from a host that may not send now, or were malformed."""
        return self._refusals.count

    def fileno(self) -> int:
        """A descriptor that becomes readable when a message arrives. Then call `receive` until it returns None."""
        return int(self._socket.getsockopt(zmq.FD))

    def wait(self, seconds: float | None, others: Sequence[int | zmq.Socket[bytes]] = ()) -> bool:
        """Block until a message waits, but at most for `seconds`. None means that there is no limit.

        Args:
            others: File descriptors or sockets. The wait also ends when one of them becomes readable.

        Returns:
            Whether a message waits or one of `others` is readable. If messages also come from other hosts, `receive`
            may still return None: the message may be refused, and ZeroMQ reports the first message of a connection
            before all of it has arrived.
        """
        if self._unpacked:
            return True
        sources: list[Any] = [(source, zmq.POLLIN) for source in (self._socket, *others)]
        return bool(zmq.zmq_poll(sources, -1 if seconds is None else max(0, round(seconds * 1000))))

    def receive(self) -> Received | None:
        """The next message, or None if no message waits."""
        while not self._unpacked:
            try:
                parcel = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            host = "" if self._network is None else self._sender(self._network, parcel[0])
            if host is not None:
                self._unpack(parcel, host)
        return self._unpacked.popleft()

    def drain(self, most: int) -> Iterator[Received]:
        """Returns up to `most` of the waiting messages."""
        for _ in range(most):
            received = self.receive()
            if received is None:
                return
            yield received

    def _sender(self, network: Network, frame: zmq.Frame) -> str | None:
        """The host that has sent this frame, an empty text for this host, or None if the host may not send now."""
        # ``Peer-Address`` and ``User-Id`` come from ZeroMQ in this process. So the sender of the frame cannot choose
        # these texts.
        try:
            if str(frame.get("Peer-Address")).startswith(_LOCAL):
                return ""
            key = str(frame.get("User-Id"))
        except zmq.ZMQError:  # one of the texts is missing
            key = ""
        host = network.host_of(key)
        if host is None:
            self._refusals.add(f"the host with the key {key!r} may not send messages now")
            if self._refusals.count % CUT_PARCELS == 0:
                cut(frame, port_of(self.remote_address))
        return host

    def _unpack(self, parcel: Sequence[zmq.Frame], host: str) -> None:
        """Append the messages of a parcel."""
        frames = [frame.buffer.toreadonly() for frame in parcel[1:]]
        try:
            label = _LABELS.decode(parcel[0].buffer)
        except msgspec.MsgspecError:
            if not host:
                raise
            self._refusals.add(f"host {host} has sent malformed messages")
            return
        sent = label.sent
        if host and self._network is not None:
            sent -= self._network.offset
        rest = iter(join(frames, label.pieces) if label.pieces else frames)
        for count in label.counts:
            self._unpacked.append(Received(list(islice(rest, count)), sent, host))

    def close(self) -> None:
        """Close the socket, and remove the socket file, which ZeroMQ does not remove."""
        path = self.address.removeprefix("ipc://")
        self._socket.close(linger=0)
        if path.startswith("/"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


class Outbox:
    """Connections to the inboxes of other processes. Each connection is made at its first use.

    Args:
        context: The process's ZeroMQ context.
        network: Needed to send messages to other hosts.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], network: Network | None = None) -> None:
        self._context = context
        self._network = network
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._connections: dict[str, Connection] = {}
        # Connections that `send` has found broken. `lost` has not reported them yet.
        self._broken: list[tuple[str, Connection]] = []

    @property
    def monitors(self) -> Sequence[zmq.Socket[bytes]]:
        """Sockets that become readable when `lost` may return an address. Empty without connections to other hosts."""
        connections = [*self._connections.values(), *(connection for _, connection in self._broken)]
        return [connection.monitor for connection in connections]

    def send(self, address: str, *messages: Sequence[Buffer]) -> None:
        """Send messages in one parcel. Each message is a list of frames.

        Large frames are not copied, so their memory must not change until they are sent. If the connection to another
        host has ended, the messages are dropped, and `lost` reports the address.

        Args:
            address: An `Inbox.address` on this host, or an `Inbox.remote_address` on another host.

        Raises:
            ValueError: the address of another host is malformed, or there is no network.
        """
        counts = [len(frames) for frames in messages]
        frames = [frame for frames in messages for frame in frames]
        if is_remote(address):
            self._send_far(address, counts, frames)
            return
        socket = self._sockets.get(address)
        if socket is None:
            socket = self._sockets[address] = self._connect(address)
        label = _ENCODER.encode(_Label(time.monotonic(), counts))
        socket.send_multipart([label, *frames], zmq.NOBLOCK, copy=False)

    def lost(self) -> list[str]:
        """The addresses of other hosts whose connection has ended, or could not be made, since the last call.

        Each of these connections is closed, and its unsent messages are dropped. The next `send` makes a new one.
        """
        ended = [(address, connection) for address, connection in self._connections.items() if connection.has_ended()]
        for address, _ in ended:
            del self._connections[address]
        ended += self._broken
        self._broken.clear()
        for _, connection in ended:
            connection.close()
        return list(dict(ended))

    def forget(self, address: str) -> None:
        """Drop the connection to a process that has ended, and all messages that still wait to be sent to it."""
        socket = self._sockets.pop(address, None)
        if socket is not None:
            socket.close(linger=0)
        connection = self._connections.pop(address, None)
        if connection is not None:
            connection.close()
        for entry in [entry for entry in self._broken if entry[0] == address]:
            entry[1].close()
            self._broken.remove(entry)

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Close every connection. When the ZeroMQ context ends, it waits up to `linger_ms` for unsent messages."""
        for socket in self._sockets.values():
            socket.close(linger=linger_ms)
        for connection in self._connections.values():
            connection.close(linger_ms)
        for _, connection in self._broken:
            connection.close()
        self._sockets.clear()
        self._connections.clear()
        self._broken.clear()

    def _send_far(self, address: str, counts: list[int], frames: list[Buffer]) -> None:
        """Send a parcel to another host."""
        if self._network is None:
            raise ValueError("this process has no network object, so it cannot send messages to other hosts")
        connection = self._connections.get(address)
        if connection is None:
            connection = self._connections[address] = Connection(self._context, self._network, address)
            connection.socket.copy_threshold = COPY_BELOW_BYTES
        parts, pieces = divide(frames)
        label = _ENCODER.encode(_Label(time.monotonic() + self._network.offset, counts, pieces))
        try:
            connection.socket.send_multipart([label, *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            del self._connections[address]
            connection.stop()
            self._broken.append((address, connection))

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        if self._network is not None and not address.startswith("ipc://"):
            raise ValueError(f"{address!r} has no key, so messages to it could be read and forged on the way")
        socket = self._context.socket(zmq.PUSH)
        socket.set_hwm(0)
        socket.copy_threshold = COPY_BELOW_BYTES
        socket.connect(address)
        return socket
