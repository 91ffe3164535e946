"""`sgl-omni join`: runs workers on this host for a server on another host."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from omni_pipeline import logs
from omni_pipeline.errors import StartupError
from omni_pipeline.hosts.agent import run_agent
from omni_pipeline.hosts.invitation import read_invitation
from omni_pipeline.os_process import die_with_parent


def join(
    invitation: Annotated[
        str,
        typer.Argument(
            metavar="[FILE]",
            help="File with the invitation; - means standard input. The invitation itself is not accepted here, "
            "because other users can see the arguments of a command.",
        ),
    ] = "-",
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address of this host to which the other hosts connect. This option has an effect only if the "
            "server's configuration does not set hosts.….listen.",
            show_default="the address from which this host reaches the server",
        ),
    ] = "",
    parent: Annotated[
        int | None,
        typer.Option(metavar="PID", help="End when the parent process with this process id ends.", show_default=False),
    ] = None,
) -> None:
    """Join a server on another host, and run workers on this host until the server or this command ends.

    The server's configuration must name this host in hosts. On the server's host, `sgl-omni invite HOST` prints the
    invitation. This host needs the same versions of this package and its libraries, and the same checkpoint.
    """
    if parent is not None:
        die_with_parent(parent, signal.SIGTERM)
    logs.configure("agent", "INFO", "text")
    asyncio.run(run_agent(read_invitation(_read(invitation)), listen))


def _read(name: str) -> str:
    if name == "-":
        return sys.stdin.readline()
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartupError(f"Cannot read the invitation {name}: {reason}.") from error
