"""Runs one session over its WebSocket: reads events, and ends the session at its time limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import WSCloseCode, WSMsgType, web

from gateway.bodies.json_body import JsonBody
from gateway.bodies.reader import JsonBodyReader
from gateway.realtime.dialogue import Dialogue
from gateway.realtime.outbox import Outbox
from gateway.realtime.protocol.reading import Heard, event_id_of, read_event
from gateway.realtime.protocol.server_events import error_event, from_beta
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import ErrorInfo, OmniError, bad_request, internal, unavailable

log = logging.getLogger(__name__)

# Time that a client has to read the last events of its session.
_LAST_SECONDS = 5.0


class LiveSession:
    """One open connection.

    Args:
        socket: The WebSocket.
        dialogue: Executes events.
        outbox: Sends events.
        limits: Bounds on the session.
        stopping: Set when the server is about to stop.
        in_thread: Calls a function in a thread that clients share, and returns its result.
    """

    def __init__(
        self,
        socket: web.WebSocketResponse,
        dialogue: Dialogue,
        outbox: Outbox,
        limits: Limits,
        stopping: asyncio.Event,
        in_thread: Callable[[Callable[[], Heard]], Awaitable[Heard]],
    ) -> None:
        self._socket = socket
        self._dialogue = dialogue
        self._outbox = outbox
        self._limits = limits
        self._stopping = stopping
        self._in_thread = in_thread
        self._last_event = asyncio.get_running_loop().time()

    async def run(self) -> str:
        """Serve the session until it ends. Returns a short text for the log: how the session ended.

        A session ends when the client closes the connection. A session also ends at its maximum duration, after its
        maximum idle time, and when the server stops. In these three cases, the client gets an error event and the close
        code 1001.

        Raises:
            ConnectionError: if the connection must be closed at once.
        """
        self._dialogue.open()
        writing = asyncio.create_task(self._outbox.run())
        reading = asyncio.create_task(self._read())
        waiting = asyncio.create_task(self._wait_for_end())
        tasks = [writing, reading, waiting]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
            if reading.done():
                reading.result()
                return "closed"
            reading.cancel()
            info = waiting.result()
            await self._say_goodbye(info, writing)
            return info.code or "ended"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _say_goodbye(self, info: ErrorInfo, writing: asyncio.Task[None]) -> None:
        await self._dialogue.close()
        self._outbox.put(error_event(info))
        self._outbox.close()
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await writing
                await self._socket.close(code=WSCloseCode.GOING_AWAY, message=(info.code or "").encode())
        except TimeoutError as error:
            raise ConnectionError("the client does not read") from error

    # --- events ---

    async def _read(self) -> None:
        """Execute the client's events until the client closes the connection."""
        async for message in self._socket:
            self._last_event = asyncio.get_running_loop().time()
            if message.type is WSMsgType.TEXT:
                await self._carry_out(message.data)
            elif message.type is WSMsgType.BINARY:
                self._outbox.put(
                    error_event(bad_request("Events must be text messages, not binary.", code="invalid_event").info)
                )

    async def _carry_out(self, data: bytes) -> None:
        event_id = None
        try:
            body = await self._parse(data)
            event_id = event_id_of(body)
            read = partial(read_event, body, self._limits)
            heard = await self._in_thread(read) if body.large else read()
            await self._dialogue.take(heard)
        except OmniError as error:
            self._outbox.put(error_event(error.info, event_id))
        except Exception:
            log.exception("unexpected error")
            info = internal("Something went wrong inside the server.").info
            self._outbox.put(error_event(info, event_id))

    async def _parse(self, data: bytes) -> JsonBody:
        reader = JsonBodyReader(self._limits)
        await reader.receive(data)
        body = reader.finish()
        return from_beta(body) if self._outbox.beta else body

    # --- the end ---

    async def _wait_for_end(self) -> ErrorInfo:
        """Wait until the session must end. Returns the reason."""
        loop = asyncio.get_running_loop()
        expires = loop.time() + self._limits.realtime_session_seconds
        while True:
            idle_at = self._last_event + self._limits.realtime_idle_seconds
            now = loop.time()
            if now >= expires:
                return _ended("The session has reached its maximum duration.", code="session_expired")
            if now >= idle_at:
                if not self._dialogue.busy:
                    return _ended("The session was idle for too long.", code="session_idle")
                self._last_event = now
                continue
            try:
                async with asyncio.timeout_at(min(expires, idle_at)):
                    await self._stopping.wait()
            except TimeoutError:
                continue
            await self._dialogue.quiet()
            return unavailable("The server is shutting down.", code="shutting_down").info


def _ended(message: str, *, code: str) -> ErrorInfo:
    return bad_request(message, code=code).info
