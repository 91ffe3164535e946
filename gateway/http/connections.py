"""Limits the number of connections, and the time for which a client may leave bytes unread. Also answers malformed
HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from gateway.api.responses import error_body
from gateway.http.middleware import SERVER, error_response
from omni_pipeline.errors import ErrorInfo, internal, unavailable

log = logging.getLogger(__name__)

_NOT_HTTP = ErrorInfo(status=400, message="The request is not valid HTTP.", code="invalid_http")
_FULL = unavailable(
    "The server has reached its limit of connections; try again in a moment.", code="too_many_connections"
).info
_FULL_BODY = msgspec.json.encode(error_body(_FULL))
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    + f"Retry-After: {_FULL.retry_after}\r\nContent-Length: {len(_FULL_BODY)}\r\n\r\n".encode()
    + _FULL_BODY
)


# After the deadline of a request, the client has this number of seconds to read the rest of its answer, or the error.
GRACE_SECONDS = 5.0


class Connection(web.RequestHandler):
    """One client's connection.

    The connection does not buffer output: a write ends only when the operating system has accepted the last byte. If a
    client does not read, its connection is closed, for every kind of response. If there are too many connections, a new
    connection may replace an unused connection of another address. This other address must have at least two more
    connections than the address of the new connection.

    Args:
        manager: The server that the connection belongs to.
        most: Maximum number of connections at a time.
        unread_seconds: The connection is closed if the client leaves bytes unread for this number of seconds.
        options: Passed on to `web.RequestHandler`.
    """

    __slots__ = ("_channel", "_most", "_server", "_timer", "_unread_seconds")

    def __init__(self, manager: web.Server, most: int, unread_seconds: float, **options: Any) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **options)
        self._server = manager
        self._most = most
        self._unread_seconds = unread_seconds
        self._timer: asyncio.TimerHandle | None = None
        # Our own reference to the transport. aiohttp sets its attribute `transport` to None while the last bytes may
        # still wait to be sent.
        self._channel: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the connection, or answer 503 and close it if there are too many connections. asyncio calls this."""
        assert isinstance(transport, asyncio.Transport)
        self._channel = transport
        transport.set_write_buffer_limits(high=0)  # a write ends when the operating system has accepted all its bytes
        if self._find_room():
            super().connection_made(transport)
            return
        self.close()  # the server does not read from this client
        transport.write(_REFUSAL)
        transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes. Pause reading while a request waits for the end of an earlier request on this
        connection. asyncio calls this.

        Without this pause, one connection could make the server keep 32 requests, each with a megabyte of headers.
        aiohttp resumes reading when it takes the next request.
        """
        super().data_received(data)
        if self._messages and not self._buffer_paused:
            self._pause_reading_for_buffer()

    def _find_room(self) -> bool:
        """Whether there is room for this connection. To make room, this method may close an unused connection of an
        address that has more connections.
        """
        by_address: dict[str, list[Connection]] = defaultdict(list)
        for connection in self._server.connections:
            if isinstance(connection, Connection) and connection._is_open:
                by_address[connection._address].append(connection)
        if sum(map(len, by_address.values())) < self._most:
            return True
        greediest = max(by_address.values(), key=len)
        if len(greediest) < len(by_address[self._address]) + 2:
            return False
        unused = next((connection for connection in greediest if connection._is_unused), None)
        if unused is None:
            return False
        unused._channel.abort()
        return True

    @property
    def _address(self) -> str:
        return str((self._channel.get_extra_info("peername") or [""])[0])

    @property
    def _is_open(self) -> bool:
        return not self._channel.is_closing() or self._channel.get_write_buffer_size() > 0

    @property
    def _is_unused(self) -> bool:
        """Whether the connection is unused. A connection is unused if it has no request in progress. It also counts as
        unused if the client does not read the response.
        """
        return not self._request_in_progress or self.writing_paused

    def pause_writing(self) -> None:
        """Begin to measure the time for which bytes wait for the client. asyncio calls this."""
        super().pause_writing()
        self._timer = asyncio.get_running_loop().call_later(self._unread_seconds, self._channel.abort)

    def resume_writing(self) -> None:
        """Stop the timer, because all bytes have been sent. asyncio calls this."""
        self._stop_timer()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timer, because the connection has ended. asyncio calls this."""
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The response to malformed HTTP, and to a bug outside all handlers.

        Raises:
            ConnectionError: if the response has begun already, or the client has left.
        """
        if isinstance(exc, HttpProcessingError):
            info = _explained(exc)
            # The message of the error is not logged. The message quotes the client's data, and this data may contain a
            # key.
            log.info("malformed HTTP: error=%s code=%s remote=%s", type(exc).__name__, info.code, request.remote)
        elif isinstance(exc, UnicodeEncodeError):  # the message quotes a header that is not UTF-8
            log.info("malformed HTTP: error=%s remote=%s", type(exc).__name__, request.remote)
            info = _NOT_HTTP
        elif isinstance(exc, ConnectionError):  # the client left while a response was being written
            raise exc
        else:
            log.error("unexpected error", exc_info=exc)
            info = internal("Something went wrong inside the server.").info
        if request.writer.output_size:
            raise ConnectionError("The response has begun; it can only be cut off.")
        response = error_response(info, {"Server": SERVER})
        response.force_close()
        return response


def _explained(error: HttpProcessingError) -> ErrorInfo:
    if isinstance(error, LineTooLong) or error.message.startswith("Too many headers"):
        return ErrorInfo(status=431, message="The request line or the headers are too large.", code="headers_too_large")
    return _NOT_HTTP
