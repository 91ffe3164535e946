"""Sends the events of one session over its WebSocket, in order, and limits the events that wait for a slow client."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import msgspec
from aiohttp import WSMsgType, web

from gateway.realtime.items.conversation import new_id
from gateway.realtime.protocol.server_events import Event, beta_event

log = logging.getLogger(__name__)

# While more than this number of bytes wait for the client, a response makes no further events.
_ENOUGH_BYTES = 1 << 20

_encoder = msgspec.json.Encoder()


class Outbox:
    """The events that wait to be sent.

    Args:
        socket: The WebSocket.
        beta: Whether the client uses the beta API.
        most_bytes: Maximum size of all events that wait. If their size is larger, the connection is closed.
        send_seconds: If the client reads nothing for this time, the connection is closed.
    """

    def __init__(self, socket: web.WebSocketResponse, *, beta: bool, most_bytes: int, send_seconds: float) -> None:
        self._socket = socket
        self.beta = beta
        self._most_bytes = most_bytes
        self._send_seconds = send_seconds
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._closing = False
        self.overflowed = False

    def put(self, sent: Event) -> None:
        """Give the event an id, and send the event as soon as the client reads."""
        if self.beta:
            in_beta = beta_event(sent)
            if in_beta is None:
                return
            sent = in_beta
        data = _encoder.encode({"event_id": new_id("event"), **sent})
        self._waiting.append(data)
        self._bytes += len(data)
        self.overflowed |= self._bytes > self._most_bytes
        self._changed.set()

    async def drained(self) -> None:
        """Wait until a response may make more events: until at most `_ENOUGH_BYTES` wait to be sent."""
        while self._bytes > _ENOUGH_BYTES and not self._closing:
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """End `run` as soon as all waiting events have been sent."""
        self._closing = True
        self._changed.set()

    async def run(self) -> None:
        """Send events until `close`.

        Raises:
            ConnectionError: if the client has left, or is too slow.
        """
        while True:
            while self._waiting:
                if self.overflowed:
                    raise ConnectionError("too many events wait for the client")
                data = self._waiting[0]
                try:
                    async with asyncio.timeout(self._send_seconds):
                        await self._socket.send_frame(data, WSMsgType.TEXT)
                except TimeoutError as error:
                    raise ConnectionError("the client does not read") from error
                self._waiting.popleft()
                self._bytes -= len(data)
                self._changed.set()
            if self._closing:
                return
            self._changed.clear()
            await self._changed.wait()
