"""Carries messages over a stream socket. A message consists of frames, which are runs of bytes. The number of frames
and their lengths are sent first.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence

from omni_pipeline.wire.tensor import Buffer

_FRAMES, _SIZE = struct.Struct("=I"), struct.Struct("=Q")
_MOST_BUFFERS = 512  # number of frames that are passed to the kernel in one call; the kernel's limit is 1024

# Maximum number of bytes that one call reads or writes, so that a large message does not delay other work.
MOST_BYTES = 8 * 1024 * 1024


# Maximum length of a frame. Every tensor of a request is far smaller. But a reader whose memory is damaged may send any
# length.
MOST_FRAME_BYTES = 64 * 1024**3


class Channel:
    """One end of a non-blocking socket. Messages are queued, and the channel sends and receives as many bytes as the
    socket allows.

    Attributes:
        ended: Whether the other end is known to be closed, or has sent lengths that cannot be true.
    """

    def __init__(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        self.ended = False
        self._socket = ours
        self._out: deque[memoryview] = deque()
        self._complete: deque[list[Buffer]] = deque()
        self._parser = self._parse()
        self._gap = next(self._parser)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    @property
    def has_output(self) -> bool:
        """Whether queued bytes wait until the socket accepts more bytes."""
        return bool(self._out) and not self.ended

    def send(self, frames: Sequence[Buffer]) -> None:
        """Queue a message, which `flush` sends. The memory of the message must not change until the message has been
        sent.
        """
        self._out.extend(_pieces(frames))

    def flush(self) -> None:
        """Write queued bytes until the socket accepts no more bytes, but at most about `MOST_BYTES`."""
        left = MOST_BYTES
        while self.has_output and left > 0:
            batch = [self._out[index] for index in range(min(len(self._out), _MOST_BUFFERS))]
            try:
                sent = self._socket.sendmsg(batch)
            except BlockingIOError:
                return
            except ConnectionError:
                self.ended = True
                return
            left -= sent
            _remove(self._out, sent)

    def receive(self) -> Iterator[list[Buffer]]:
        """Read until the socket has no more bytes, but at most `MOST_BYTES`. Returns the messages that are now
        complete.
        """
        left = MOST_BYTES
        while not self.ended and left > 0:
            try:
                read = self._socket.recv_into(self._gap, min(self._gap.nbytes, left))
            except BlockingIOError:
                break
            except ConnectionError:
                read = 0
            if not read:
                self.ended = True
                break
            left -= read
            self._gap = self._gap[read:]
            if not self._gap.nbytes:
                self._gap = next(self._parser, memoryview(b""))
                self.ended = not self._gap.nbytes
        while self._complete:
            yield self._complete.popleft()

    def close(self) -> None:
        """Close the socket, and drop the queued messages."""
        self._socket.close()
        self._out.clear()
        self._complete.clear()

    def _parse(self) -> Iterator[memoryview]:
        """A generator that yields the memory into which the next bytes are to be written. It is resumed when these
        bytes have arrived, and ends at an impossible length.
        """
        while True:
            head = bytearray(_FRAMES.size)
            yield memoryview(head)
            frames: list[Buffer] = []
            for _ in range(_FRAMES.unpack(head)[0]):
                size = bytearray(_SIZE.size)
                yield memoryview(size)
                (length,) = _SIZE.unpack(size)
                if length > MOST_FRAME_BYTES:
                    return
                frame = bytearray(length)
                if frame:
                    yield memoryview(frame)
                frames.append(frame)
            self._complete.append(frames)


def send_all(to: socket.socket, frames: Sequence[Buffer]) -> None:
    """Send a message over a blocking socket."""
    pieces = deque(_pieces(frames))
    while pieces:
        batch = [pieces[index] for index in range(min(len(pieces), _MOST_BUFFERS))]
        _remove(pieces, to.sendmsg(batch))


def receive_all(source: socket.socket) -> list[Buffer]:
    """Wait for the next message. Raises EOFError if the other end has closed the socket."""
    (count,) = _FRAMES.unpack(_exactly(source, _FRAMES.size))
    return [_exactly(source, _SIZE.unpack(_exactly(source, _SIZE.size))[0]) for _ in range(count)]


def _pieces(frames: Sequence[Buffer]) -> Iterator[memoryview]:
    yield memoryview(_FRAMES.pack(len(frames)))
    for frame in frames:
        view = memoryview(frame).cast("B")
        yield memoryview(_SIZE.pack(view.nbytes))
        if view.nbytes:
            yield view


def _remove(pieces: deque[memoryview], count: int) -> None:
    """Remove the first `count` bytes."""
    while pieces and count >= pieces[0].nbytes:
        count -= pieces.popleft().nbytes
    if count:
        pieces[0] = pieces[0][count:]


def _exactly(source: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view.nbytes:
        read = source.recv_into(view)
        if not read:
            raise EOFError
        view = view[read:]
    return data
