"""Kills or stops workers of a busy server at random. Reports how requests ended, how long the recovery took, and what
the server left behind.

    python scripts/chaos.py --model-path checkpoints/tiny --times 10

The script starts a server with nine workers (six with --text-only) on the loopback interface. While clients send
requests of all kinds, the script kills or stops one worker after the other, each at a random moment. Each worker gets
each signal several times, in random order. The option --times sets the number of times. The script checks these
promises:

- Every request ends, and every answer equals the answer that the same request gets when no other request runs.
- After a worker is killed, its requests get their errors within --errors seconds. After a worker is stopped, the limit
  is --silent-seconds plus --errors seconds, because the server must first detect the stop.
- The service is healthy again within --recover seconds.
- At the end, the server leaves nothing behind.

The exit code is 0 if all promises were kept, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import signal
import time
from pathlib import Path

import aiohttp
import msgspec
from msgspec import Struct
from trials.client import Outcome
from trials.conduct import Findings, run
from trials.conversations import conversations
from trials.report import memory_table
from trials.service import FORK_SERVER, Service
from trials.traffic import Book, Traffic, ask_alone

from omni_pipeline.contract.flag_values import replicas

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
WARM_SECONDS = 3.0


class Fault(Struct):
    """A signal that killed or stopped a process, and the effects of the signal. Times are in seconds.

    Attributes:
        victim, signal: The process and the signal.
        at: The time at which the signal was sent, on the clock `time.monotonic`.
        died: The time from the signal to the end of the process.
        recovered: The time from the end of the process until `/health` reported ``ok``.
        lost: The number of requests that ended with ``worker_lost`` because of the fault.
        last_error: The time from the signal to the last ``worker_lost`` error.
    """

    victim: str
    signal: str
    at: float
    died: float = 0.0
    recovered: float = 0.0
    lost: int = 0
    last_error: float = 0.0


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--text-only", action="store_true", help="serve and request text only")
    parser.add_argument("--times", type=int, default=1, help="number of times that each worker gets each signal")
    parser.add_argument("--minutes", type=float, default=math.inf, help="send no signals after this time")
    parser.add_argument("--replicas", default="", help="numbers of replicas, as for sgl-omni serve: voice=2,vocoder=3")
    parser.add_argument("--workers", nargs="+", help=f"targets; may include '{FORK_SERVER}' (default: all workers)")
    parser.add_argument("--signals", nargs="+", choices=["KILL", "STOP"], default=["KILL", "STOP"])
    parser.add_argument("--clients", type=int, default=8, help="number of requests at a time")
    parser.add_argument("--of-each", type=int, default=3, help="number of different requests of each kind")
    parser.add_argument("--silent-seconds", type=float, default=10.0, help="the server's supervision.silent_seconds")
    parser.add_argument(
        "--errors", type=float, default=1.0, help="seconds within which errors must follow a kill or a detected stop"
    )
    parser.add_argument("--recover", type=float, default=10.0, help="seconds until the service must be healthy again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/chaos"), help="directory for report.md, report.json, log")
    return parser


def main() -> None:
    arguments = parser().parse_args()
    groups = replicas(arguments.replicas) if arguments.replicas else {}
    config = {"supervision": {"silent_seconds": arguments.silent_seconds}, "groups": groups}
    run("Chaos", arguments, config, break_workers)


async def break_workers(service: Service, session: aiohttp.ClientSession, arguments: argparse.Namespace) -> Findings:
    """Break a busy server according to the arguments, and judge the results."""
    wanted = conversations(arguments.seed, of_each=arguments.of_each, speech=not arguments.text_only)
    book = Book(await ask_alone(session, service.url, wanted))
    traffic = Traffic(session, service.url, wanted, book, clients=arguments.clients, seed=arguments.seed)
    await asyncio.sleep(WARM_SECONDS)
    before = service.pss_by_process()
    draw = random.Random(arguments.seed)
    begin, faults = time.monotonic(), []
    names = sorted((await service.health(session))["workers"])
    for victim, number in plan(arguments, names, draw):
        if time.monotonic() > begin + 60 * arguments.minutes:
            break
        faults.append(await strike(service, session, victim, number, draw.uniform(0.0, 2.0)))
    await asyncio.sleep(WARM_SECONDS)
    after = service.pss_by_process()
    await traffic.end()
    charge(faults, book.outcomes)
    findings = Findings()
    judge(findings, arguments, faults, book)
    findings.tables["Faults"] = table(faults)
    findings.tables["Ends"] = [["end", "requests"], *([how, str(count)] for how, count in book.counts().items())]
    findings.tables["Memory under load (PSS)"] = memory_table(before, after)
    findings.details = {"faults": msgspec.to_builtins(faults), "outcomes": msgspec.to_builtins(book.outcomes)}
    return findings


def plan(arguments: argparse.Namespace, names: list[str], draw: random.Random) -> list[tuple[str, signal.Signals]]:
    """Pairs of a process and a signal, in the order in which the signals are sent. In each round, every process gets
    the same signal, and the order of the processes is random.

    Args:
        names: The names of all workers.
    """
    victims = arguments.workers or names
    strikes = []
    for _ in range(arguments.times):
        for number in (signal.Signals[f"SIG{name}"] for name in arguments.signals):
            strikes += [(victim, number) for victim in draw.sample(victims, len(victims))]
    return strikes


async def strike(
    service: Service, session: aiohttp.ClientSession, victim: str, number: signal.Signals, delay: float
) -> Fault:
    """Wait `delay` seconds, and send `victim` the signal `number`. Then wait until the service is healthy again."""
    await asyncio.sleep(delay)
    pid = service.pid_of(victim)
    fault = Fault(victim, number.name, time.monotonic())
    pidfd = os.pidfd_open(pid)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, ended.set)
    try:
        os.kill(pid, number)
        async with asyncio.timeout(120):
            await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    fault.died = time.monotonic() - fault.at
    await service.until(session, healthy=False)  # the server may not have noticed yet that the process has ended
    await service.until(session, healthy=True)
    fault.recovered = time.monotonic() - fault.at - fault.died
    print(f"{fault.victim} {fault.signal}: died {fault.died:.2f} s, healthy {fault.recovered:.2f} s later", flush=True)
    return fault


def charge(faults: list[Fault], outcomes: list[Outcome]) -> None:
    """Attribute each lost request to the latest fault before the end of the request."""
    for outcome in outcomes:
        if outcome.code == "worker_lost":
            fault = max((each for each in faults if each.at < outcome.ended), key=lambda each: each.at)
            fault.lost += 1
            fault.last_error = max(fault.last_error, outcome.ended - fault.at)


def judge(findings: Findings, arguments: argparse.Namespace, faults: list[Fault], book: Book) -> None:
    """Check each promise against the observations."""
    check = findings.check
    kills = [fault for fault in faults if fault.signal == KILL.name]
    stops = [fault for fault in faults if fault.signal == STOP.name]
    workers = [fault for fault in faults if fault.victim != FORK_SERVER]
    soon, bound = arguments.errors, arguments.silent_seconds + arguments.errors
    late = max((fault.last_error for fault in kills), default=0.0)
    late_stop = max((fault.last_error for fault in stops), default=0.0)
    slowest = max((fault.recovered for fault in workers), default=0.0)
    answered = sum(outcome.end == "answered" for outcome in book.outcomes)
    codes = {outcome.code for outcome in book.outcomes if outcome.code}
    check("every request ended", f"{len(book.without_end)} of {len(book.outcomes)} did not", not book.without_end)
    check("answers equal those without other requests", f"{len(book.wrong)} of {answered} differ", not book.wrong)
    check("only faults cause errors", ", ".join(sorted(codes)) or "none", codes <= {"worker_lost", "not_ready"})
    check(f"errors within {soon:g} s of a kill", f"{late:.2f} s", late <= soon)
    check(f"errors within {bound:g} s of a stop", f"{late_stop:.2f} s", late_stop <= bound)
    check(f"healthy again within {arguments.recover:g} s", f"{slowest:.2f} s", slowest <= arguments.recover)


def table(faults: list[Fault]) -> list[list[str]]:
    """A table with one row for each victim and signal."""
    rows = [["process", "signal", "times", "requests lost", "last error ≤", "process gone ≤", "healthy again ≤"]]
    for victim, number in sorted({(fault.victim, fault.signal) for fault in faults}):
        some = [fault for fault in faults if (fault.victim, fault.signal) == (victim, number)]
        worst = [max(getattr(fault, name) for fault in some) for name in ("last_error", "died", "recovered")]
        lost = sum(fault.lost for fault in some)
        rows.append([victim, number, str(len(some)), str(lost), *(f"{seconds:.2f} s" for seconds in worst)])
    return rows


if __name__ == "__main__":
    main()
