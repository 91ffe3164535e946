"""Serves the files of the page, with headers that forbid the page to load anything from other servers."""

from __future__ import annotations

import hashlib
from pathlib import Path

from aiohttp import ETag, web
from msgspec import Struct

PATH = "/playground"

_FOLDER = Path(__file__).parent / "page"
_INDEX = "index.html"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".mp4": "video/mp4",
    ".ogg": "audio/ogg",
    ".svg": "image/svg+xml",
}
# The schemes `data:` and `blob:` are for media that the user has chosen. These media never come from another host. The
# directives about trusted types forbid every module of the page to turn text into markup.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # the browser asks each time whether the file is still the same
}


class _File(Struct, frozen=True):
    content: bytes
    media_type: str
    tag: str


class PageFiles:
    """The files of the page, in memory. The files are served without an API key, because all their content is public.

    Raises:
        OSError: if a file cannot be read.
    """

    def __init__(self) -> None:
        self._files = {path.name: _read(path) for path in _FOLDER.iterdir()}

    async def show_page(self, request: web.Request) -> web.Response:
        """The page itself. The links in the page are relative, so that a proxy may serve it below another path."""
        return _answer(request, self._files[_INDEX])

    async def show_file(self, request: web.Request) -> web.Response:
        """A file that the page uses. Raises HTTPNotFound if there is no such file."""
        found = self._files.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        return _answer(request, found)


def wants_page(request: web.Request) -> bool:
    """Whether the client is a browser that is about to show the answer to a person."""
    return "text/html" in request.headers.get("Accept", "")


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _MEDIA_TYPES[path.suffix], hashlib.sha256(content).hexdigest()[:16])


def _answer(request: web.Request, found: _File) -> web.Response:
    known = request.if_none_match or ()
    if any(tag.value == found.tag for tag in known):
        response = web.Response(status=304, headers=_HEADERS)
    else:
        response = web.Response(body=found.content, headers={**_HEADERS, "Content-Type": found.media_type})
    response.etag = ETag(found.tag)
    return response
