"""Sends an answer to its client: as one response, or as a stream while it is generated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

from aiohttp import web

from gateway.answers.collector import Body
from gateway.answers.exchange import HttpExchange
from gateway.http.connections import GRACE_SECONDS
from omni_pipeline.errors import ErrorInfo, OmniError, internal


class AnswerSource(Protocol):
    """An answer that can be sent. The protocol contains the parts of `Answer` that this module uses."""

    @property
    def error(self) -> ErrorInfo | None:
        """The error with which the request failed; None if it has not failed."""
        ...

    async def take(self) -> list[Body]:
        """Wait for messages. After the last message, returns an empty list."""
        ...

    def on_error(self, call: Callable[[], None]) -> None:
        """Register a function that is called as soon as the request fails."""
        ...


class StreamWriter(Protocol):
    """Turns the messages of one answer into the bytes of a streamed response.

    Attributes:
        headers: Headers of the response.
        keep_alive: Bytes that keep a quiet stream open; empty if the format has none.
    """

    headers: Mapping[str, str]
    keep_alive: bytes

    def opening(self) -> bytes:
        """The bytes before the first message."""
        ...

    async def events(self, bodies: list[Body]) -> bytes:
        """The bytes for `bodies`; empty if they produce no output yet."""
        ...

    @property
    def complete(self) -> bool:
        """Whether all parts of the answer have arrived."""
        ...

    async def closing(self) -> bytes:
        """The bytes after the last message of a complete answer."""
        ...

    def failure(self, info: ErrorInfo) -> bytes | None:
        """The bytes that end a stream which has failed. None if the format cannot express an error. The connection is
        then closed, so that the client can detect that the answer is not complete.
        """
        ...


async def send_whole(exchange: HttpExchange, answer: AnswerSource, response: web.Response) -> web.Response:
    """Send an answer that is complete."""
    async with _bounded(exchange, answer):
        await response.prepare(exchange.request)
        await response.write_eof()
        exchange.progress.outcome = "ok"
    return response


async def send_stream(exchange: HttpExchange, answer: AnswerSource, writer: StreamWriter) -> web.StreamResponse:
    """Send an answer while the stages generate it.

    If an error occurs before the headers are sent, this function raises the error, so that the response has the status
    of the error. The headers are sent with the first message, or after `limits.keep_alive_seconds` without a message,
    so that a proxy does not close the connection.

    Raises:
        OmniError: if the request fails before the headers are sent.
    """
    progress = exchange.progress
    quiet = exchange.limits.keep_alive_seconds
    bodies = await _soon(answer, quiet)
    response = web.StreamResponse(headers=writer.headers)
    async with _bounded(exchange, answer):
        with progress.timeline.span("write"):
            await response.prepare(exchange.request)
        try:
            if bodies is None:
                await response.write(writer.keep_alive)
                bodies = await _next(answer, response, writer, quiet)
            exchange.place.free()
            await _write(exchange, response, bodies, answer, writer)
        except OmniError as error:
            progress.failed(error.info)
            last = writer.failure(error.info)
            if last is None:
                if exchange.request.transport is not None:
                    exchange.request.transport.abort()
            else:
                await response.write(last)
                await response.write_eof()
    return response


def unfinished() -> OmniError:
    """The error for an answer whose messages ended before all of its parts were complete."""
    return internal("A stage of the server ended the answer before it was complete.", code="stream_gap")


async def _write(
    exchange: HttpExchange, response: web.StreamResponse, bodies: list[Body], answer: AnswerSource, writer: StreamWriter
) -> None:
    """Write a whole answer. `bodies` are its first messages."""
    progress = exchange.progress
    data = writer.opening()
    while bodies:
        progress.saw(bodies)
        with progress.timeline.span("write"):
            data += await writer.events(bodies)
            if data:
                await response.write(data)
                data = b""
        bodies = await _next(answer, response, writer, exchange.limits.keep_alive_seconds)
    if not writer.complete:
        raise unfinished()
    with progress.timeline.span("write"):
        await response.write(await writer.closing())
        await response.write_eof()
    progress.outcome = "ok"


async def _next(answer: AnswerSource, response: web.StreamResponse, writer: StreamWriter, quiet: float) -> list[Body]:
    """The next messages of `answer`. While no message arrives, sends bytes that keep the stream open. `quiet` is the
    number of seconds between these bytes.
    """
    while (bodies := await _soon(answer, quiet)) is None:
        await response.write(writer.keep_alive)
    return bodies


async def _soon(answer: AnswerSource, quiet: float) -> list[Body] | None:
    """The next messages of `answer`. None if no message arrives within `quiet` seconds."""
    try:
        async with asyncio.timeout(quiet):
            return await answer.take()
    except TimeoutError:
        return None


@asynccontextmanager
async def _bounded(exchange: HttpExchange, answer: AnswerSource) -> AsyncIterator[None]:
    """Close the connection if the client does not read the end of a failed answer.

    `answer` fails, for example, when its deadline passes or when too many of its bytes are unread. The block then has
    `GRACE_SECONDS` to send the error. If the block has not ended after this time, the connection is closed, because the
    client does not even read the error.
    """
    loop = asyncio.get_running_loop()
    progress = exchange.progress
    try:
        async with asyncio.timeout(None) as patience:
            answer.on_error(lambda: patience.reschedule(loop.time() + GRACE_SECONDS))
            yield
    except TimeoutError:
        if answer.error is not None and progress.outcome == "cancelled":
            progress.failed(answer.error)
        if exchange.request.transport is not None:
            exchange.request.transport.abort()
