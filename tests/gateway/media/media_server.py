"""A web server on a free port of this machine, for tests that download media."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler


@asynccontextmanager
async def listening(answer: Handler) -> AsyncIterator[int]:
    """Runs a server that calls `answer` for every request, and cancels the call when the client leaves. Yields the
    port.
    """
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    listen_socket = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listen_socket).start()
    yield listen_socket.getsockname()[1]
    await runner.cleanup()
