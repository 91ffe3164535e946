"""Runs a whole trial: starts a server, tests it, stops it, and reports on the answers and the leftovers."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import aiohttp
from msgspec import Struct, field

from trials.report import PromiseCheck, TrialReport
from trials.service import Service

REST_SECONDS = 60.0


class Findings(Struct):
    """The findings of a trial so far. The fields are those of `TrialReport`."""

    checks: list[PromiseCheck] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def check(self, promise: str, seen: str, kept: bool) -> None:
        """Record a promise, and whether it was kept."""
        self.checks.append(PromiseCheck(promise, seen, kept))


def run(
    name: str,
    arguments: argparse.Namespace,
    config: dict[str, Any],
    trial: Callable[[Service, aiohttp.ClientSession, argparse.Namespace], Awaitable[Findings]],
) -> NoReturn:
    """Run a whole script: try a server according to the arguments, write and print the report, and exit.

    The exit code is 1 if a promise was broken.
    """
    arguments.out.mkdir(parents=True, exist_ok=True)
    flags = ["--text-only"] if arguments.text_only else []
    service = Service(arguments.model_path, config, flags, arguments.out / "server.log")
    title = f"{name}, seed {arguments.seed}"
    report = asyncio.run(conduct(title, service, lambda service, session: trial(service, session, arguments)))
    report.write(arguments.out)
    print(report.markdown())
    sys.exit(0 if report.good else 1)


async def conduct(
    title: str, service: Service, *trials: Callable[[Service, aiohttp.ClientSession], Awaitable[Findings]]
) -> TrialReport:
    """Wait until `service` is healthy, run the trials, stop the server, and look for leftovers."""
    found = Findings()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await service.until(session, healthy=True)
            for trial in trials:
                findings = await trial(service, session)
                found.checks += findings.checks
                found.tables |= findings.tables
                found.details |= findings.details
            try:
                seen, idle = f"none after {await service.until_idle(session, REST_SECONDS):.2f} s", True
            except TimeoutError as error:
                seen, idle = str(error), False
            found.check("no stage holds a request at the end", seen, idle)
        code = service.stop()
        found.check("exit code 0", str(code), code == 0)
    finally:
        service.server.kill()
        left = service.leftovers()
    for what, things in left.items():
        found.check(f"no {what} left", ", ".join(things) or "none", not things)
    command = " ".join(["python", *sys.argv])
    return TrialReport(title, command, found.checks, found.tables, found.details)
