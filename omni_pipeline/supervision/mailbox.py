"""Runs the main process's sockets on its event loop, and passes each received message to the handler of its type."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import zmq

from omni_pipeline.logs import fields
from omni_pipeline.wire.codec import Codec, WireError
from omni_pipeline.wire.messages import Message
from omni_pipeline.wire.transport import MAIN, Inbox, Outbox, Received, endpoint

# Maximum number of messages to handle before the event loop's other tasks get their turn.
DRAIN_MESSAGES = 128

logger = logging.getLogger(__name__)

MessageType = TypeVar("MessageType", bound=Message)


class Mailbox:
    """Sends messages to workers, and receives messages from workers after `open` has been called.

    Each type of message has one handler. The fleet registers handlers for messages about workers, and the pipeline
    registers handlers for messages about requests.

    Args:
        run_dir: Directory of the sockets.
        codec: Encodes and decodes messages for the edges of the graph.
        unreadable: Called with the id of a request whose message could not be read.

    Raises:
        StartupError: the path of the socket would be too long.
    """

    def __init__(self, run_dir: str, codec: Codec, unreadable: Callable[[str], None]) -> None:
        self._codec = codec
        self._handlers: dict[type[Any], Callable[[Any, Received], None]] = {}
        self._unreadable = unreadable
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        address = endpoint(run_dir, MAIN, 0)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = Inbox(self._context, address)
        self._outbox = Outbox(self._context)

    @property
    def address(self) -> str:
        """The endpoint to which workers send messages."""
        return self._inbox.address

    def register(self, kind: type[MessageType], handler: Callable[[MessageType, Received], None]) -> None:
        """Call `handler` for each message of one type, with the message and its `Received` record."""
        self._handlers[kind] = handler

    def open(self) -> None:
        """Begin to receive messages on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inbox.fileno(), self._take_turn)

    def send(self, message: Message, *addresses: str) -> None:
        """Send one message to each of `addresses`."""
        frames = self._codec.encode(message)
        for address in addresses:
            self._outbox.send(address, frames)

    def forget(self, address: str) -> None:
        """Drop all unsent messages to a process that has ended."""
        self._outbox.forget(address)

    def take(self, most: int) -> int:
        """Handle up to `most` of the waiting messages. Returns the number of messages handled."""
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
                self._dispatch(message, received)
        return count

    def _dispatch(self, message: Message, received: Received) -> None:
        handler = self._handlers.get(type(message))
        if handler is None:
            # the log must not contain the content of a request
            logger.error("misdirected message: a %s", type(message).__name__)
        else:
            handler(message, received)

    def close(self) -> None:
        """Close the sockets. Messages that have not been sent yet are dropped."""
        self._closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._inbox.fileno())
        self._inbox.close()
        self._outbox.close(linger_ms=0)
        self._context.term()

    def _take_turn(self) -> None:
        """Handle a limited number of waiting messages, so that other tasks can run in between."""
        if self._closed:
            return
        emptied = False
        try:
            emptied = self.take(DRAIN_MESSAGES) < DRAIN_MESSAGES
        finally:
            # The descriptor becomes readable only when a new message arrives. So the remaining messages need another
            # call.
            if not emptied and self._loop is not None:
                self._loop.call_soon(self._take_turn)
