"""A gateway for `service.serve`. Clients send one text in each connection, and get one line as the answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from omni_pipeline.config.schema import Server, Trace
from omni_pipeline.errors import OmniError
from omni_pipeline.supervision.pipeline import Supervisor
from omni_pipeline.wire.messages import Failed, Work
from tests.omni_pipeline.echo_stages import Text


async def run(
    pipeline: Supervisor,
    server: Server,
    *,
    model_path: str,
    checkpoint: str,
    stages: tuple[str, ...],
    trace: Trace,
    listen_socket: socket.socket,
    ready: Callable[[], None],
    stopping: asyncio.Event,
) -> None:
    """Serve until `stopping` is set."""
    waiting: dict[str, asyncio.Future[Work | Failed]] = {}
    pipeline.connect(lambda message: waiting.pop(message.request_id).set_result(message), lambda *_: None)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request_id = str(id(writer))
        waiting[request_id] = asyncio.get_running_loop().create_future()
        reply = waiting[request_id]
        text = (await reader.readline()).decode()
        try:
            pipeline.submit(request_id, Text(text))
            line = f"{model_path}: {(await reply).body.text}"  # type: ignore[union-attr]
        except OmniError as error:
            line = f"{error.info.status}: {pipeline.problem}"
        writer.write(f"{line}\n".encode())
        await writer.drain()
        writer.close()
        ready()

    async with await asyncio.start_server(answer, sock=listen_socket):
        await stopping.wait()
