"""Sends orders of an operator to a server that runs on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, TypeAlias

import typer
from msgspec import Struct

from omni_pipeline.errors import StartupError
from omni_pipeline.supervision.control_socket import control_sockets, send_order

Pid: TypeAlias = Annotated[
    int | None, typer.Option("--pid", help="Process id of the server, if several servers run.", show_default=False)
]


def answers(kind: str, order: Struct, pid: int | None) -> Iterator[str]:
    """Send an order, and yield the lines of the answer as they come.

    Args:
        kind: The kind of the order; see `supervision.control_socket`.
        pid: Process id of the server; None if only one server accepts orders of this kind.

    Raises:
        StartupError: there is no such server, or it cannot carry out the order.
    """
    found = control_sockets(kind)
    if pid is None and len(found) > 1:
        raise StartupError(
            f"Several servers are running. Choose one process id with --pid: {', '.join(map(str, sorted(found)))}."
        )
    number = pid if pid is not None else next(iter(found), 0)
    if number not in found:
        which = f"with process id {pid} " if pid is not None else ""
        raise StartupError(
            f"No running server {which}accepts this command. The server must run as the same user as this command, and "
            "with the same directory for temporary files (TMPDIR). `sgl-omni invite` also requires the setting 'hosts' "
            "in the server's configuration."
        )
    try:
        for told in send_order(found[number], order):
            if told.failed:
                raise StartupError(told.text)
            yield told.text
    except OSError as error:
        raise StartupError(
            f"The server with process id {number} does not answer: {error.strerror or error}."
        ) from error
