"""Runs the main process's sockets on its event loop, and passes each message to the handler for the message's type."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import zmq

from omni_pipeline.logs import fields
from omni_pipeline.wire.codec import Codec, WireError
from omni_pipeline.wire.messages import Message
from omni_pipeline.wire.network import HostLink, Network
from omni_pipeline.wire.transport import LINGER_MS, MAIN, Inbox, Outbox, Received, endpoint

# Maximum number of messages to handle before other tasks of the event loop can run.
DRAIN_MESSAGES = 128

logger = logging.getLogger(__name__)

MessageType = TypeVar("MessageType", bound=Message)


class Mailbox:
    """Sends messages to workers, and receives messages from workers after `open` has been called.

    Each type of message has one handler. `worker_lifecycle.Fleet` registers handlers for messages about workers, and
    `pipeline.Supervisor` registers handlers for messages about requests.

    The agent of another host has a mailbox too.

    Args:
        run_dir: Directory of the sockets.
        codec: Encodes and decodes messages for the edges of the graph.
        unreadable: Called with the id of a request if a message about this request could not be read.
        link: How to reach other hosts; None if the service runs on one host.
        only_from: Name of the only other host whose messages are accepted; empty if every host of the service may send
            messages.

    Attributes:
        network: The keys of the hosts from which messages are accepted; None if the service runs on one host.
        closed: Whether `close` has been called.

    Raises:
        StartupError: the path of the socket would be too long, or no port is free.
    """

    def __init__(
        self,
        run_dir: str,
        codec: Codec,
        unreadable: Callable[[str], None],
        link: HostLink | None = None,
        only_from: str = "",
    ) -> None:
        self.closed = False
        self._codec = codec
        self._handlers: dict[type[Any], Callable[[Any, Received], None]] = {}
        self._unreadable = unreadable
        self._only_from = only_from
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lost: Callable[[str], None] = _ignore
        # The monitors of connections to other hosts, and the numbers of their descriptors.
        self._watched: dict[zmq.Socket[bytes], int] = {}
        address = endpoint(run_dir, MAIN, 0)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.network = Network(self._context, link) if link is not None else None
        try:
            self._inbox = Inbox(self._context, address, self.network)
        except BaseException:
            if self.network is not None:
                self.network.close()
            self._context.term()
            raise
        self._outbox = Outbox(self._context, self.network)

    @property
    def address(self) -> str:
        """The endpoint to which processes on this host send messages."""
        return self._inbox.address

    @property
    def remote_address(self) -> str:
        """The endpoint to which processes on other hosts send messages; empty if the service runs on one host."""
        return self._inbox.remote_address

    def register(self, kind: type[MessageType], handler: Callable[[MessageType, Received], None]) -> None:
        """Call `handler` for each message of one type, with the message and its `Received` record."""
        self._handlers[kind] = handler

    def when_lost(self, handler: Callable[[str], None]) -> None:
        """Call `handler` each time a connection to another host has ended. The argument is the address at the other
        end. Messages to this address that have not arrived are lost.
        """
        self._lost = handler

    def open(self) -> None:
        """Begin to receive messages on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inbox.fileno(), self._take_turn)
        self._watch_connections()

    def send(self, message: Message, *addresses: str) -> None:
        """Send one message to each of `addresses`. Empty addresses are ignored. A process on another host has an empty
        address if the process has ended or has not loaded yet.
        """
        frames = self._codec.encode(message)
        for address in filter(None, addresses):
            self._outbox.send(address, frames)
        self._watch_connections()

    def forget(self, address: str) -> None:
        """Drop all unsent messages to a process that has ended."""
        self._outbox.forget(address)
        self._watch_connections()

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
        if self._only_from and received.host not in ("", self._only_from):
            logger.error(
                "host %s sent a message of the type %s, which this host may not send",
                received.host,
                type(message).__name__,
            )
        elif handler is None:
            # the log must not contain the content of a request
            logger.error("received a message for another process: %s", type(message).__name__)
        else:
            handler(message, received)

    def close(self) -> None:
        """Close the sockets, and drop unsent messages to processes on this host. For unsent messages to other hosts,
        wait up to `LINGER_MS`, because a host that does not get the last message ends only when its lease expires.
        """
        self.closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._inbox.fileno())
            for number in self._watched.values():
                self._loop.remove_reader(number)
        self._inbox.close()
        self._outbox.close(linger_ms=LINGER_MS if self.network is not None else 0)
        if self.network is not None:
            self.network.close()
        self._context.term()

    def _watch_connections(self) -> None:
        """Begin to watch new connections to other hosts for their end, and stop watching closed connections.

        Call this method whenever connections may have been closed. Otherwise, a new file can get the descriptor number
        of a closed monitor, and the event loop would ignore this file.
        """
        if self._loop is None or self.closed:
            return
        monitors = set(self._outbox.monitors)
        for monitor in self._watched.keys() - monitors:
            self._loop.remove_reader(self._watched.pop(monitor))
        added = monitors - self._watched.keys()
        for monitor in added:
            self._watched[monitor] = monitor.fileno()
            self._loop.add_reader(self._watched[monitor], self._check_connections)
        if added:
            # The descriptor of a monitor becomes readable only at a new event.
            self._loop.call_soon(self._check_connections)

    def _check_connections(self) -> None:
        if self.closed or self._loop is None:
            return
        lost = self._outbox.lost()
        self._watch_connections()
        for address in lost:
            self._lost(address)

    def _take_turn(self) -> None:
        """Handle a limited number of waiting messages, so that other tasks can run in between."""
        if self.closed:
            return
        emptied = False
        try:
            emptied = self.take(DRAIN_MESSAGES) < DRAIN_MESSAGES
        finally:
            # The descriptor becomes readable only when a new message arrives. So another call has to handle the
            # remaining messages.
            if not emptied and self._loop is not None:
                self._loop.call_soon(self._take_turn)


def _ignore(_: str) -> None:
    """The handler of lost connections until `when_lost` sets another handler."""
