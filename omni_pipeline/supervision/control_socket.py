"""A socket through which an operator on the same machine sends commands to a running server.

The socket is a file in the server's run directory. Only the user of the server can open the directory and the socket. A
client sends one order as a line of JSON. The server answers with lines of JSON until the order is done.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

Order = TypeVar("Order", bound=Struct)

_LINE_BYTES = 64 * 1024

Tell: TypeAlias = Callable[[str], None]


class OrderError(Exception):
    """Raised if an order cannot be carried out. The message contains the reason."""


class Told(Struct):
    """One line of the answer.

    Attributes:
        text: A description of the current step. If `failed` is set: the reason why the order cannot be carried out.
    """

    text: str
    failed: bool = False


class ControlSocket(Generic[Order]):
    """Listens for orders, on one event loop.

    Args:
        run_dir: The server's run directory.
        kind: The kind of the orders. The name of the socket consists of the kind and the process id of the server.
        order: The type of the orders.
        carry_out: Carries out an order. The second argument is called with a line of text for each step. Raises
            OrderError if the order cannot be carried out.
    """

    def __init__(
        self, run_dir: str, kind: str, order: type[Order], carry_out: Callable[[Order, Tell], Awaitable[None]]
    ) -> None:
        self._path = os.path.join(run_dir, f"{kind}-{os.getpid()}")
        self._order = order
        self._carry_out = carry_out
        self._server: asyncio.Server | None = None
        self._orders: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Begin to listen."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listening.bind(self._path)
        finally:
            os.umask(before)
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=_LINE_BYTES)

    def close(self) -> None:
        """Stop listening, and cancel orders that are not done."""
        if self._server is not None:
            self._server.close()
        for order in self._orders:
            order.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def tell(text: str, *, failed: bool = False) -> None:
            writer.write(msgspec.json.encode(Told(text, failed)) + b"\n")

        task = asyncio.current_task()
        assert task is not None
        self._orders.add(task)
        try:
            await self._carry_out(msgspec.json.decode(await reader.readline(), type=self._order), tell)
        except (OrderError, msgspec.MsgspecError, ValueError) as error:
            tell(str(error), failed=True)
        finally:
            self._orders.discard(task)
            with suppress(ConnectionError):
                await writer.drain()
            writer.close()


def control_sockets(kind: str, directory: Path | None = None) -> dict[int, Path]:
    """The sockets of this user's running servers for one kind of orders, by process id.

    Args:
        directory: The directory that contains the run directories of servers; None means the directory for temporary
            files.
    """
    found = {}
    for path in Path(directory or tempfile.gettempdir()).glob(f"sgl-omni-*/{kind}-*"):
        number = path.name.removeprefix(f"{kind}-")
        if number.isdigit() and os.access(path, os.W_OK):
            found[int(number)] = path
    return found


def send_order(path: Path, order: Struct) -> Iterator[Told]:
    """Send an order to a server. Yields the lines of the answer as they come. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        connection.sendall(msgspec.json.encode(order) + b"\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                yield msgspec.json.decode(line, type=Told)
