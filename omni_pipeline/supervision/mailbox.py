"""The main process's sockets on its event loop: what comes in is handed on in turns, nothing that goes out waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import zmq

from omni_pipeline.logs import fields
from omni_pipeline.wire.messages import Codec, Message, WireError
from omni_pipeline.wire.transport import MAIN, Inbox, Outbox, Received, endpoint

# Messages taken in before the event loop's other tasks get their turn.
DRAIN_MESSAGES = 128

logger = logging.getLogger(__name__)


class Mailbox:
    """Sends to workers, and hears them once it is `open`.

    Args:
        run_dir: Where the sockets are.
        codec: For the edges of the graph.
        handle: Called with each message that comes, and how it came.
        unreadable: Called with the id of a request whose message could not be read.

    Raises:
        StartupError: there is no place for the socket.
    """

    def __init__(
        self, run_dir: str, codec: Codec, handle: Callable[[Message, Received], None], unreadable: Callable[[str], None]
    ) -> None:
        self._codec = codec
        self._handle = handle
        self._unreadable = unreadable
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        address = endpoint(run_dir, MAIN, 0)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = Inbox(self._context, address)
        self._outbox = Outbox(self._context)

    @property
    def address(self) -> str:
        """Where workers send to."""
        return self._inbox.address

    def open(self) -> None:
        """Hear, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inbox.fileno(), self._take_in)

    def send(self, message: Message, *addresses: str) -> None:
        """Send one message to each of `addresses`."""
        frames = self._codec.encode(message)
        for address in addresses:
            self._outbox.send(address, frames)

    def forget(self, address: str) -> None:
        """Drop what has not reached a process that is gone."""
        self._outbox.forget(address)

    def take(self, most: int) -> int:
        """Handle up to `most` messages that wait; how many there were."""
        count = 0
        for received in self._inbox.drain(most):
            count += 1
            try:
                message = self._codec.decode(received.frames)
            except WireError as error:
                logger.error("unreadable message: %s", error, extra=fields(answer_id=error.request_id))
                if error.request_id is not None:
                    self._unreadable(error.request_id)
            else:
                self._handle(message, received)
        return count

    def close(self) -> None:
        """Close the sockets; what has not left is dropped."""
        self._closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._inbox.fileno())
        self._inbox.close()
        self._outbox.close(linger_ms=0)
        self._context.term()

    def _take_in(self) -> None:
        """Handle some of what waits, so that other tasks get their turn too."""
        if self._closed:
            return
        emptied = False
        try:
            emptied = self.take(DRAIN_MESSAGES) < DRAIN_MESSAGES
        finally:
            if not emptied and self._loop is not None:  # the descriptor only tells of news: what is left needs a call
                self._loop.call_soon(self._take_in)
