"""Lets web pages use the API from a browser, if the operator lists the origin of the page."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from omni_pipeline.errors import ErrorInfo, OmniError

_ANY = "*"
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, *",  # for browsers, `*` does not include Authorization
    "Access-Control-Max-Age": "600",
}
_EXPOSED = "Retry-After, X-Request-Id"


class CrossOrigin:
    """Adds the headers that allow pages of other origins to use the API. Browsers enforce these headers.

    Args:
        origins: Allowed origins, such as ``https://example.org``, in lower case as browsers send them; ``*`` for all.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origin.lower().removesuffix("/") for origin in origins)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Signal handler that lets pages of allowed origins read any response, including errors."""
        if _ANY in self._origins:
            response.headers["Access-Control-Allow-Origin"] = _ANY
        else:
            response.headers.add("Vary", "Origin")
            if not self._allowed(request):
                return
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED

    @web.middleware
    async def preflight(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer preflight requests without a check of the API key. In a preflight request, a browser asks which
        methods and headers a page may send. A preflight request does not contain the key.
        """
        if (
            request.method == "OPTIONS"
            and "Access-Control-Request-Method" in request.headers
            and self._allowed(request)
        ):
            return web.Response(status=204, headers=_PREFLIGHT)
        return await handler(request)

    def check_socket(self, request: web.Request) -> None:
        """Refuse a WebSocket that a page of another origin opens. Browsers let every page open WebSockets to every
        server, so the server must check the origin. A client that sends no Origin header is not a browser.

        Raises:
            OmniError: 403 if the origin is neither allowed nor the server's own.
        """
        origin = request.headers.get("Origin")
        if origin is None or self._allowed(request) or _host_of(origin) == (request.host or "").lower():
            return
        raise OmniError(
            ErrorInfo(
                status=403,
                message="Pages of this origin may not use this server. The operator of the server can allow the origin "
                "with --allowed-origin (server.allowed_origins).",
                type="permission_error",
                code="origin_not_allowed",
            )
        )

    def _allowed(self, request: web.Request) -> bool:
        origin = request.headers.get("Origin")
        return origin is not None and (_ANY in self._origins or origin in self._origins)


def _host_of(origin: str) -> str | None:
    """The host and the port in an origin; None if it is malformed."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
