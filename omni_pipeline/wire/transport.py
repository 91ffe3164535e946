"""ZeroMQ sockets between processes. Each process has one inbox, and one connection to each inbox to which it sends
messages.

Sending never blocks: the sockets have no high-water mark, because admission limits the number of requests and so the
number of messages in flight.

All messages of a step for one process are sent as one parcel and arrive together, so that the receiver's next step can
use all of them. If each message were sent separately, the receiver would wake up for the first message and do a step
with that message alone. In a ring of stages, batches would then become smaller in every round. A parcel begins with a
frame that contains the time of sending and each message's number of frames. The frames of the messages follow.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import zmq
from msgspec import Struct

from omni_pipeline.errors import StartupError
from omni_pipeline.wire.tensor import Buffer

# The name of the main process's inbox. Workers' inboxes have the names of the workers.
MAIN = "main"

# Frames with fewer bytes are copied, because a copy costs less than tracking a frame until it is sent.
COPY_BELOW_BYTES = 16 * 1024

# Maximum time, in milliseconds, that a closing process waits until its last messages are sent.
LINGER_MS = 500


class _Label(Struct, array_like=True):
    """The first frame of a parcel: the time at which the parcel was sent, and the number of frames of each message."""

    sent: float
    counts: list[int]


_ENCODER = msgspec.msgpack.Encoder()
_LABELS = msgspec.msgpack.Decoder(_Label)


class Received(NamedTuple):
    """One received message.

    Attributes:
        frames: The message's read-only frames, which own their memory.
        sent: Time at which the message was sent, by `time.monotonic`. All processes of a host share this clock.
    """

    frames: list[memoryview]
    sent: float

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

    Attributes:
        address: The bound endpoint, with the real port in place of a wildcard.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._socket = context.socket(zmq.PULL)
        self._socket.set_hwm(0)
        self._socket.bind(address)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._unpacked: deque[Received] = deque()

    def fileno(self) -> int:
        """A descriptor that becomes readable when a message arrives. Then call `receive` until it returns None."""
        return int(self._socket.getsockopt(zmq.FD))

    def wait(self, seconds: float | None, others: Sequence[int] = ()) -> bool:
        """Block until a message waits, but at most for `seconds` (None means without limit).

        Args:
            others: File descriptors. The wait also ends when one of them becomes readable.

        Returns:
            Whether a message waits or a descriptor is readable.
        """
        if self._unpacked:
            return True
        sources: list[Any] = [(source, zmq.POLLIN) for source in (self._socket, *others)]
        return bool(zmq.zmq_poll(sources, -1 if seconds is None else max(0, round(seconds * 1000))))

    def receive(self) -> Received | None:
        """The next message, or None if no message waits."""
        if not self._unpacked:
            try:
                parcel = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            frames = (frame.buffer.toreadonly() for frame in parcel[1:])
            label = _LABELS.decode(parcel[0].buffer)
            for count in label.counts:
                own = [frame for _, frame in zip(range(count), frames, strict=False)]
                self._unpacked.append(Received(own, label.sent))
        return self._unpacked.popleft()

    def drain(self, most: int) -> Iterator[Received]:
        """Returns up to `most` of the waiting messages."""
        for _ in range(most):
            received = self.receive()
            if received is None:
                return
            yield received

    def close(self) -> None:
        """Close the socket, and remove the socket file, which ZeroMQ does not remove."""
        path = self.address.removeprefix("ipc://")
        self._socket.close(linger=0)
        if path.startswith("/"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


class Outbox:
    """Connections to the inboxes of other processes. Each connection is made at its first use."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._sockets: dict[str, zmq.Socket[bytes]] = {}

    def send(self, address: str, *messages: Sequence[Buffer]) -> None:
        """Send messages in one parcel. Each message is a list of frames.

        Large frames are not copied: their memory must not change until they are sent.
        """
        socket = self._sockets.get(address)
        if socket is None:
            socket = self._sockets[address] = self._connect(address)
        label = _ENCODER.encode(_Label(time.monotonic(), [len(frames) for frames in messages]))
        socket.send_multipart([label, *(frame for frames in messages for frame in frames)], zmq.NOBLOCK, copy=False)

    def forget(self, address: str) -> None:
        """Drop the connection to a process that has ended, and all messages that still wait to be sent to it."""
        socket = self._sockets.pop(address, None)
        if socket is not None:
            socket.close(linger=0)

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Close every connection. When the context ends, unsent messages have `linger_ms` to be sent."""
        for socket in self._sockets.values():
            socket.close(linger=linger_ms)
        self._sockets.clear()

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        socket.set_hwm(0)
        socket.copy_threshold = COPY_BELOW_BYTES
        socket.connect(address)
        return socket
