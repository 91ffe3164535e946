"""Gives a hostile client its own address, and records the server's answers to its requests."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from msgspec import Struct

CHAT = "/v1/chat/completions"

_CODE = re.compile(rb'"code": ?"(\w+)"')
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_TAIL = 1 << 18  # bytes of an answer that are kept
_RESET_AFTER = 60.0  # seconds after which a client gives up reading an answer


class Reply(Struct, frozen=True):
    """The answer to one request; status 0 if the connection broke before an answer."""

    status: int
    tail: bytes

    def json(self) -> Any:
        """The body, if it was short enough to be kept whole."""
        return json.loads(self.tail.partition(b"\r\n\r\n")[2])


class Wire(Struct):
    """One open connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_until(self, mark: bytes) -> None:
        """Read until `mark` has arrived or the connection has ended."""
        seen = b""
        while mark not in seen and (piece := await self.reader.read(4096)):
            seen = (seen + piece)[-8192:]


class HostileClient:
    """One client, which the server distinguishes from all other clients by its address.

    Args:
        port: Port of the server on the loopback interface.
        address: The client's own address, such as ``127.0.2.1``.
        draw: Source of the client's random choices.

    Attributes:
        connections: The number of connections that the server accepted.
        outcomes: The number of requests by status and error code.
        breaches: For each thing that the server must never do, the number of times that the server did it. The keys
            describe these things.
    """

    def __init__(self, port: int, address: str, draw: random.Random) -> None:
        self.port = port
        self.address = address
        self.draw = draw
        self.connections = 0
        self.outcomes: Counter[str] = Counter()
        self.breaches: Counter[str] = Counter()

    def head(self, length: int, *, path: str = CHAT, close: bool = True) -> bytes:
        """The head of a POST request whose body has `length` bytes."""
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
            *(["Connection: close"] if close else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    @asynccontextmanager
    async def connection(self, *, receive_buffer: int | None = None) -> AsyncIterator[Wire]:
        """Connect from the client's address. At the end, the connection is reset."""
        wire = await self.connect(receive_buffer=receive_buffer)
        try:
            yield wire
        finally:
            wire.writer.transport.abort()

    async def connect(self, *, receive_buffer: int | None = None) -> Wire:
        """Connect from the client's address, with a receive buffer of this many bytes."""
        raw = socket.socket()
        raw.setblocking(False)
        try:
            if receive_buffer is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            raw.bind((self.address, 0))
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", self.port))
        except BaseException:
            raw.close()
            raise
        self.connections += 1
        return Wire(*await asyncio.open_connection(sock=raw, limit=receive_buffer or 2**16))

    async def exchange(self, request: bytes) -> Reply:
        """Send the bytes of one whole request with ``Connection: close``, and record the answer."""
        tail = bytearray()
        async with self.connection() as wire:
            # do not wait until everything is sent, because the server may answer before it has read everything
            wire.writer.write(request)
            try:
                async with asyncio.timeout(_RESET_AFTER):
                    while piece := await wire.reader.read(2**16):
                        tail += piece
                        del tail[:-_TAIL]
            except (ConnectionError, TimeoutError):
                pass
        return self.note(bytes(tail))

    async def post(self, body: bytes | dict[str, Any]) -> Reply:
        """Post a chat request, and record the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.exchange(self.head(len(data)) + data)

    def note(self, answer: bytes) -> Reply:
        """Record the bytes of an answer."""
        status = _STATUS.match(answer)
        codes = _CODE.findall(answer)
        number = int(status[1]) if status else 0
        outcome = f"{number} {codes[-1].decode() if codes else 'ok'}" if number else "cut off"
        if len(answer) == _TAIL and not number:
            outcome, number = "200 long", 200
        self.outcomes[outcome] += 1
        if number == 500:
            self.breaches[f"answer {outcome}"] += 1
        return Reply(number, answer)


# One round of an attack. It is repeated until the siege ends, and may then be cancelled anywhere.
Round: TypeAlias = Callable[[HostileClient], Awaitable[None]]


class Target(Struct, frozen=True):
    """The limits of the server that the attacks try to exceed.

    Attributes:
        body_bytes, connections: The settings `server.limits.body_bytes` and `server.limits.connections`.
        speech_tokens: The number of talker tokens that a hostile client asks for.
        media_bytes: The setting `server.media.max_bytes`.
        image_pixels: The setting `max_image_pixels` of preprocessing.
    """

    body_bytes: int
    connections: int
    speech_tokens: int
    media_bytes: int
    image_pixels: int


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    """The body of a chat request that has one message."""
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}
