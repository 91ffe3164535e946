"""Limits the number of client connections, and answers malformed HTTP with an API error."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from gateway.api.responses import error_body
from gateway.http.middleware import SERVER, error_response
from omni_pipeline.errors import ErrorInfo, internal, unavailable

log = logging.getLogger(__name__)

_FULL = unavailable(
    "The server has reached its limit of connections; try again in a moment.", code="too_many_connections"
).info
_FULL_BODY = msgspec.json.encode(error_body(_FULL))
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    + f"Retry-After: {_FULL.retry_after}\r\nContent-Length: {len(_FULL_BODY)}\r\n\r\n".encode()
    + _FULL_BODY
)


class Connection(web.RequestHandler):
    """One client's connection.

    Args:
        manager: The server that the connection belongs to.
        most: Largest number of connections that the server has at a time.
        options: Passed on to `web.RequestHandler`.
    """

    __slots__ = ("_most", "_server")

    def __init__(self, manager: web.Server, most: int, **options: Any) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **options)
        self._server = manager
        self._most = most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the connection. If there are too many connections, answer 503 and close it."""
        if len(self._server.connections) < self._most:
            super().connection_made(transport)
            return
        assert isinstance(transport, asyncio.Transport)
        self.close()  # nothing that the client sends is read
        transport.write(_REFUSAL)
        transport.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The response to malformed HTTP, and to a bug outside of all handlers.

        Raises:
            ConnectionError: if the response has begun already, or the client has left.
        """
        if isinstance(exc, HttpProcessingError):
            info = _explained(exc)
            # The message of the error is not logged, because it quotes the client's data, which may be a key.
            log.info("malformed HTTP: error=%s code=%s remote=%s", type(exc).__name__, info.code, request.remote)
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
    return ErrorInfo(status=400, message="The request is not valid HTTP.", code="invalid_http")
