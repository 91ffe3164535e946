"""Lets web pages use the API from a browser, if the operator lists the origin of the page."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler

_ANY = "*"
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, *",  # for browsers, `*` does not include Authorization
    "Access-Control-Max-Age": "600",
}
_EXPOSED = "Retry-After, X-Request-Id"


class CrossOrigin:
    """Tells browsers which pages from other origins may use the API.

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
        """Answer preflight requests, in which browsers ask which methods and headers a page may send. Browsers send
        them without the page's API key.
        """
        if (
            request.method == "OPTIONS"
            and "Access-Control-Request-Method" in request.headers
            and self._allowed(request)
        ):
            return web.Response(status=204, headers=_PREFLIGHT)
        return await handler(request)

    def _allowed(self, request: web.Request) -> bool:
        origin = request.headers.get("Origin")
        return origin is not None and (_ANY in self._origins or origin in self._origins)
