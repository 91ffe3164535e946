"""Starts the process of the hostile clients, and lists the kinds of attack."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
from msgspec import Struct

from trials.hostile.client import Round, Target

_SCRIPTS = Path(__file__).parents[2]

Kind: TypeAlias = Callable[[random.Random, Target], Round]


class Attack(Struct, frozen=True):
    """One hostile client: its kind, and its own address."""

    kind: str
    address: str


class Orders(Struct, frozen=True):
    """The orders of all hostile clients."""

    port: int
    seed: int
    target: Target
    attacks: list[Attack]


class AttackResult(Struct, frozen=True):
    """The results of one hostile client; the fields are those of `HostileClient`."""

    kind: str
    connections: int
    outcomes: dict[str, int]
    breaches: dict[str, int]


def kinds() -> dict[str, Kind]:
    """The kinds of hostile clients by name. The first line of a kind's docstring describes its attack."""
    from trials.hostile import bodies, connections, media

    found = [*bodies.KINDS, *media.KINDS, *connections.KINDS]
    return {kind.__name__.replace("_", "-"): kind for kind in found}


def attacks(names: Sequence[str], clients: int) -> list[Attack]:
    """Make `clients` hostile clients. The first client gets the first kind in `names`, the second client gets the
    second kind, and so on. After the last kind, the first kind follows again.
    """
    return [Attack(names[number % len(names)], f"127.0.2.{1 + number}") for number in range(clients)]


class HostileProcess:
    """The process of the hostile clients."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, orders: Orders) -> HostileProcess:
        """Start the process, and wait until it has made its files. The clients do not attack yet."""
        path = os.pathsep.join([str(_SCRIPTS), str(_SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trials.hostile", msgspec.json.encode(orders).decode()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            limit=2**24,
        )
        assert process.stdout is not None
        if await process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the hostile clients ended with {await process.wait()}")
        return cls(process)

    def attack(self) -> None:
        """Let the clients begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def end(self) -> list[AttackResult]:
        """End all attacks and close all connections of the clients. Return the results of the attacks."""
        # The empty input is necessary: without an input, `communicate` does not close the standard input of the
        # process.
        out, _ = await self._process.communicate(b"")
        return msgspec.json.decode(out, type=list[AttackResult])

    async def kill(self) -> None:
        """End the process, if it still runs."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
