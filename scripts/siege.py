"""Attacks a server with twenty hostile clients, and reports the effects on four honest clients.

    python scripts/siege.py --model-path demo/qwen3-omni-demo --seconds 600

The script starts a server on the loopback interface, with limits that suit a small machine. Four honest clients send
one request after the other: text, a picture, a sound, and a request for speech. Their latency is measured in a quiet
phase first. Then hostile clients of all kinds attack at once, while the honest clients continue. Every client has its
own IP address, because the server distinguishes clients by address. The hostile clients run in a process with a low
priority, because real hostile clients would use the CPUs of other machines. The script checks these promises:

- Honest clients get no errors, and every answer equals the answer before the attack.
- During the attack, the p99 latency of each honest client is at most N times its p99 latency in the quiet phase. The
  option --slower sets N.
- The memory of all processes stays below a bound that follows from the limits in the configuration.
- A limited time after the siege, every resource is free again: requests, bytes, connections, KV memory, files and
  processes. The option --free sets this time in seconds.
- No hostile client gets a 500, gets data that it must not get, or ends a worker.

The exit code is 0 if all promises were kept, else 1. Some attacks are left out, because a client cannot cause them: a
silent name server, a worker's output pipe that closes, and mistakes in the configuration. Traces are off.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct
from trials.conduct import Findings, run
from trials.conversations import TrialConversation, conversations
from trials.holdings import observe, read_restarts, wait_until_free
from trials.hostile.client import Target
from trials.hostile.orders import AttackResult, HostileProcess, Orders, attacks, kinds
from trials.memory_bound import ConfiguredLimits, memory_bound
from trials.report import memory_table
from trials.service import Service
from trials.traffic import Book, Traffic, ask_alone

# The limits are so low that attacks can reach them on a small machine. The time limits are so short that the script can
# wait until a time limit ends an attack. All other settings have their defaults.
CONFIG: dict[str, Any] = {
    "server": {
        "limits": {
            "requests": 128,
            "queued": 128,
            "connections": 256,
            "body_bytes": 96 * 2**20,
            "held_bytes": 512 * 2**20,
            "decoded_bytes": 2 * 2**30,
            "idle_seconds": 10.0,
            "receive_seconds": 10.0,
            "request_seconds": 30.0,
            "reader_bytes": 2 * 2**20,
        },
        "media": {"max_bytes": 64 * 2**20, "fetch_seconds": 10.0, "allowed_domains": ["127.0.0.1"]},
    },
    "stages": {
        "preprocessing": {"options": {"reading_seconds": 10.0, "readers": 6}},
        "image_encoder": {"options": {"cache_bytes": 32 * 2**20}},
        "audio_encoder": {"options": {"cache_bytes": 32 * 2**20}},
        # Size of the talker's KV cache. Six long spoken answers fill it.
        "talker_ar": {"options": {"max_total_tokens": 4200}},
    },
}
LONG_SPEECH = 1000  # talker tokens that a hostile client asks for
HONEST = ("text", "picture", "sound", "speech")
SAMPLE_SECONDS = 1.0
LONGEST_WAIT = 60.0  # maximum seconds for which the script waits until the server is free


class Sample(Struct, frozen=True):
    """The memory of each process in bytes, at the time `at` of the clock `time.monotonic`."""

    at: float
    pss: dict[str, int]

    @property
    def together(self) -> int:
        return sum(self.pss.values())


class HonestPhase(Struct):
    """The requests of one honest client in one phase.

    Attributes:
        kind: The kind of request.
        counts: The number of requests by the way in which they ended.
        wrong: The number of wrong answers.
        p50, p99: Latency of the answers in seconds.
    """

    kind: str
    counts: dict[str, int]
    wrong: int
    p50: float
    p99: float


class Siege(Struct):
    """The observations before, during and after the siege.

    Attributes:
        quiet, besieged: The honest clients before and during the siege.
        bound: The parts of the upper bound on the memory, in bytes. The keys are their names. See
            `trials.memory_bound`.
        at_rest: The memory before the siege.
        peak: The sample with the most memory during the siege.
        free_after: The seconds from the end of the siege until everything was free.
        late: Descriptions of the resources that were not free after the time that --free sets.
        left: Descriptions of the resources that were still not free after `LONGEST_WAIT` seconds.
        restarts: The workers that were restarted during the siege.
        tracebacks: The number of tracebacks in the server's log.
        hostile: The answers to the hostile clients.
        different: The conversations whose answers after the siege were different or missing.
    """

    quiet: list[HonestPhase]
    besieged: list[HonestPhase]
    bound: dict[str, int]
    at_rest: dict[str, int]
    peak: dict[str, int]
    free_after: float
    late: list[str]
    left: list[str]
    restarts: list[str]
    tracebacks: int
    hostile: list[AttackResult]
    different: list[str]


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the siege (default: %(default)g)")
    parser.add_argument("--quiet", type=float, default=30.0, help="length of the quiet phase (default: %(default)g)")
    parser.add_argument("--hostile", type=_kinds, default=list(kinds()), help=f"kinds of attack: {', '.join(kinds())}")
    parser.add_argument("--clients", type=int, default=20, help="number of hostile clients (default: %(default)d)")
    parser.add_argument("--slower", type=float, default=2.0, help="factor by which the p99 latency may grow")
    parser.add_argument("--free", type=float, default=5.0, help="seconds within which everything must be free")
    parser.add_argument("--of-each", type=int, default=3, help="number of different requests of each honest client")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/siege"), help="directory for report.md, report.json, log")
    parser.set_defaults(text_only=False)
    return parser


def _kinds(names: str) -> list[str]:
    chosen = names.split(",")
    if unknown := set(chosen) - set(kinds()):
        raise argparse.ArgumentTypeError(f"unknown kinds: {', '.join(sorted(unknown))}")
    return chosen


def main() -> None:
    run("Siege", parser().parse_args(), CONFIG, besiege)


async def besiege(
    service: Service, session: aiohttp.ClientSession, arguments: argparse.Namespace, *, timed: bool = True
) -> Findings:
    """Besiege a server according to the arguments, and judge the results. Latency is judged only if `timed`."""
    every = conversations(arguments.seed, of_each=arguments.of_each, speech=True)
    wanted = [each for each in every if each.kind in HONEST]
    right = await ask_alone(session, service.url, wanted)
    orders = Orders(service.port, arguments.seed, target(service), attacks(arguments.hostile, arguments.clients))
    hostile = await HostileProcess.start(orders)
    try:
        quiet, _ = await honest_phase(service, wanted, right, arguments.quiet, arguments.seed)
        await service.until_idle(session, LONGEST_WAIT)
        before, restarts = await observe(service, session), await read_restarts(service, session)
        at_rest = service.pss_by_process()
        hostile.attack()
        besieged, samples = await honest_phase(service, wanted, right, arguments.seconds, arguments.seed)
        results = await hostile.end()
    finally:
        await hostile.kill()
    free_after, late, left = await wait_until_free(service, session, before, arguments.free, LONGEST_WAIT)
    siege = Siege(
        quiet,
        besieged,
        memory_bound(ConfiguredLimits.of(service.config), sum(at_rest.values())),
        at_rest,
        max(samples, key=lambda sample: sample.together).pss,
        free_after,
        late,
        left,
        await restarted(service, session, restarts),
        service.server.log.read_text(errors="replace").count("Traceback"),
        results,
        await different(service, session, wanted, right),
    )
    findings = Findings()
    judge(findings, arguments, siege, timed=timed)
    findings.tables |= tables(siege)
    findings.details["siege"] = msgspec.to_builtins(siege)
    findings.details["memory"] = msgspec.to_builtins(samples)
    return findings


def target(service: Service) -> Target:
    """The limits that the attacks aim at."""
    configured = ConfiguredLimits.of(service.config)
    limits = configured.server.limits
    return Target(
        body_bytes=limits.body_bytes,
        connections=limits.connections,
        speech_tokens=LONG_SPEECH,
        media_bytes=configured.server.media.max_bytes,
        image_pixels=configured.reading.max_image_pixels,
    )


async def honest_phase(
    service: Service, wanted: Sequence[TrialConversation], right: dict[str, str], seconds: float, seed: int
) -> tuple[list[HonestPhase], list[Sample]]:
    """Let the honest clients send requests for `seconds`. Returns their results, and samples of the memory."""
    books = {kind: Book(right) for kind in HONEST}
    samples: list[Sample] = []
    async with AsyncExitStack() as stack:
        traffics = []
        for number, (kind, book) in enumerate(books.items(), 1):
            connector = aiohttp.TCPConnector(limit=1, local_addr=(f"127.0.1.{number}", 0), keepalive_timeout=600)
            client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            own = [each for each in wanted if each.kind == kind]
            traffics.append(Traffic(client, service.url, own, book, clients=1, seed=seed))
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            samples.append(Sample(now, await asyncio.to_thread(service.pss_by_process)))
            await asyncio.sleep(min(SAMPLE_SECONDS, max(0.0, end - time.monotonic())))
        await asyncio.gather(*(traffic.end() for traffic in traffics))
    return [_phase(kind, book) for kind, book in books.items()], samples


def _phase(kind: str, book: Book) -> HonestPhase:
    taken = sorted(each.ended - each.sent for each in book.outcomes if each.end == "answered")
    p50, p99 = (taken[int(share * (len(taken) - 1) + 0.5)] if taken else float("inf") for share in (0.5, 0.99))
    return HonestPhase(kind, book.counts(), len(book.wrong), p50, p99)


async def restarted(service: Service, session: aiohttp.ClientSession, before: dict[str, float]) -> list[str]:
    """The workers that were restarted since `before`."""
    try:
        after = await read_restarts(service, session)
    except (aiohttp.ClientError, ConnectionError, TimeoutError):
        return ["the whole server"]
    return [f"{name} {count - before[name]:g}×" for name, count in after.items() if count > before[name]]


async def different(
    service: Service, session: aiohttp.ClientSession, wanted: Sequence[TrialConversation], right: dict[str, str]
) -> list[str]:
    """The conversations whose answers are now different or missing."""
    try:
        again = await ask_alone(session, service.url, wanted)
    except RuntimeError as error:
        return [str(error)]
    return [name for name, digest in again.items() if digest != right[name]]


def judge(findings: Findings, arguments: argparse.Namespace, siege: Siege, *, timed: bool) -> None:
    """Check each promise against the observations."""
    check = findings.check
    wrong = sum(phase.wrong for phase in siege.besieged)
    asked = sum(sum(phase.counts.values()) for phase in siege.besieged)
    errors = sum((Counter(phase.counts) for phase in siege.besieged), Counter())
    answered = errors.pop("answered", 0)
    seen = ", ".join(f"{count} {how}" for how, count in errors.items()) or "none"
    check("honest clients get no errors", f"{seen} of {asked} requests", not errors and bool(answered))
    check("every honest answer equals the answer on the quiet server", f"{wrong} of {answered} differ", not wrong)
    if timed:
        ratios = {now.kind: now.p99 / then.p99 for then, now in zip(siege.quiet, siege.besieged, strict=True)}
        worst = max(ratios, key=lambda kind: ratios[kind])
        promise = f"p99 latency of each honest client is at most {arguments.slower:g} × that of the quiet phase"
        check(promise, f"{ratios[worst]:.2f} × ({worst})", ratios[worst] <= arguments.slower)
    bound, peak = sum(siege.bound.values()), sum(siege.peak.values())
    check(f"memory is at most {bound / 2**20:.0f} MiB", f"{peak / 2**20:.0f} MiB", peak <= bound)
    promise = f"everything is free within {arguments.free:g} s after the siege"
    check(
        promise, "; ".join(siege.late or siege.left) or f"{siege.free_after:.2f} s", not siege.late and not siege.left
    )
    breaches: Counter[str] = Counter()
    for result in siege.hostile:
        breaches.update(result.breaches)
    seen = "; ".join(f"{what}: {count}×" for what, count in breaches.most_common()) or "none"
    check("hostile clients cause no forbidden effect", seen, not breaches)
    idle = sorted({result.kind for result in siege.hostile if not result.connections})
    check("every hostile client attacks", f"idle: {', '.join(idle) or 'none'}", not idle)
    check("no worker is restarted", ", ".join(siege.restarts) or "none", not siege.restarts)
    check("the log has no traceback", str(siege.tracebacks), not siege.tracebacks)
    after = ", ".join(siege.different) or "all are equal"
    check("answers after the siege equal those before it", after, not siege.different)


def tables(siege: Siege) -> dict[str, list[list[str]]]:
    """The tables of the report."""
    honest = [["client", "phase", "ended", "wrong", "p50", "p99"]]
    for then, now in zip(siege.quiet, siege.besieged, strict=True):
        for name, phase in (("quiet", then), ("siege", now)):
            ended = ", ".join(f"{count} {how}" for how, count in phase.counts.items())
            honest.append([phase.kind, name, ended, str(phase.wrong), f"{phase.p50:.3f} s", f"{phase.p99:.3f} s"])
    parts = {**siege.bound, "together": sum(siege.bound.values())}
    hostile = [["kind", "attacks", "what came back"]]
    for result in siege.hostile:
        aim = (kinds()[result.kind].__doc__ or "").splitlines()[0]
        outcomes = [*result.outcomes.items(), *((f"BREACH {what}", count) for what, count in result.breaches.items())]
        hostile.append([result.kind, aim, ", ".join(f"{count} {what}" for what, count in outcomes)])
    return {
        "Honest clients": honest,
        "Bound of the memory": [["part", "size"], *([name, f"{size / 2**20:.0f} MiB"] for name, size in parts.items())],
        "Memory at rest and at its peak": memory_table(siege.at_rest, siege.peak),
        "Hostile clients": hostile,
    }


if __name__ == "__main__":
    main()
