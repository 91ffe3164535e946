"""Simulates clients that leave. Each client opens its own connection, and closes it at a chosen moment of a request."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import Awaitable, Callable

from trials.conversations import TrialConversation

# The maximum time that `read` waits. It is so long that the server answers within this time under any load.
PATIENCE_SECONDS = 60.0


class Leaver:
    """One connection to the server, which sends one request."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, conversation: TrialConversation
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._body = json.dumps(conversation.body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        # With ``Connection: close``, the server closes the connection after the answer. So `read` also returns if the
        # answer ends before the expected mark.
        self._head = f"{head}Connection: close\r\nContent-Length: {len(self._body)}\r\n\r\n".encode()

    async def send(self, head: float, body: float = 0.0) -> None:
        """Send the given shares (0 to 1) of the head and of the body."""
        self._writer.write(self._head[: int(head * len(self._head))] + self._body[: int(body * len(self._body))])
        await self._writer.drain()

    async def read(self, until: bytes) -> None:
        """Read until `until` has arrived, or the answer has ended without it."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            seen = b""
            while until not in seen and (piece := await self._reader.read(4096)):
                seen = (seen + piece)[-16384:]

    def leave(self, *, rudely: bool) -> None:
        """Close the connection. If `rudely` is set, reset the connection, so that undelivered data is lost."""
        if rudely:
            linger = struct.pack("ii", 1, 0)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.close()


Moment = Callable[[Leaver, random.Random], Awaitable[None]]


async def _after_the_body(leaver: Leaver, draw: random.Random) -> None:
    await leaver.send(1, 1)
    await asyncio.sleep(draw.uniform(0.0, 0.3))  # by then the request may be anywhere in the pipeline


def _when(mark: bytes, times: int = 1) -> Moment:
    async def moment(leaver: Leaver, draw: random.Random) -> None:
        await leaver.send(1, 1)
        for _ in range(times):
            await leaver.read(mark)

    return moment


# The moments at which clients leave. The keys are their names. Moments with "sound" in their name need a request with
# streamed speech.
MOMENTS: dict[str, Moment] = {
    "before the head": lambda leaver, draw: leaver.send(0),
    "in the head": lambda leaver, draw: leaver.send(draw.uniform(0.1, 0.9)),
    "before the body": lambda leaver, draw: leaver.send(1),
    "in the body": lambda leaver, draw: leaver.send(1, draw.uniform(0.1, 0.9)),
    "right after the body": lambda leaver, draw: leaver.send(1, 1),
    "some time after the body": _after_the_body,
    "after the headers": _when(b"\r\n\r\n"),
    "after the first text": _when(b'"content":'),
    "after more text": _when(b'"content":', 4),
    "after the first sound": _when(b'"data":'),
    "after more sound": _when(b'"data":', 3),
    "before the last event": _when(b'"finish_reason":"'),
}


async def leave_at(port: int, conversation: TrialConversation, moment: Moment, draw: random.Random) -> None:
    """Send `conversation` and leave at `moment`, by closing or resetting the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    leaver = Leaver(reader, writer, conversation)
    try:
        await moment(leaver, draw)
    finally:
        leaver.leave(rudely=draw.random() < 0.5)
