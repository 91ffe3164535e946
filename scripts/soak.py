"""Keeps a server busy for a long time, at a rate that it can sustain and at twice that rate, and reports the effects.

    python scripts/soak.py --model-path checkpoints/tiny --seconds 1800

The script starts a server with short queues on the loopback interface. First, many clients connect and leave, ten at a
time, at many different moments of a request. The option --disconnects sets the number of these clients. Second, other
clients send requests of all kinds, and the script measures the rate of answers. Each of these clients sends one request
after the other. The option --clients sets the number of these clients. The *sustainable* rate is a share of the
measured rate. The option --load sets this share. Last, the script sends requests at the sustainable rate, and then at
twice this rate, whether or not the answers keep up. The script checks these promises:

- There are no errors at the sustainable rate, and no errors except 429s at twice that rate.
- After the warm-up, memory does not grow by more than the option --growth allows.
- The answers at the end equal those at the beginning.
- After clients leave, every stage frees their requests within a limited time. The option --free sets this time in
  seconds.
- At the end, the server leaves nothing behind.

The exit code is 0 if all promises were kept, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import os
import random
import time
from pathlib import Path

import aiohttp
import msgspec
from msgspec import Struct
from trials.client import Outcome, send
from trials.conduct import Findings, run
from trials.conversations import TrialConversation, conversations
from trials.disconnects import MOMENTS, leave_at
from trials.report import memory_table
from trials.service import Service
from trials.traffic import Book, Traffic, ask_alone

# The queues are short, so that requests at twice the sustainable rate are soon refused instead of waiting for minutes.
# But they are long enough for the bursts of random arrivals. Suppose that requests arrive at random, at 80 % of the
# highest rate at which the server can answer. Then a new request finds K requests in the server with a probability of
# about 0.2 × 0.8^K (see `refused_share`). With K = 32, half an hour at 20 requests per second has 6 refusals on
# average, and 16 if the rate was measured 4 % too high. With K = 128, there are no refusals, even if the rate was
# measured 10 % too high.
LIMITS = {"requests": 16, "queued": 112}
PLACES = sum(LIMITS.values())

CALIBRATION_SECONDS = 20.0
REFUSED = "too_many_requests"
MEMORY_SECONDS = 10.0
RECENT_SECONDS = 5.0
AT_ONCE = 10
WARM_ROUNDS = 10
# The maximum delay with which a stage reports the requests that it holds.
HEARTBEAT_SECONDS = 1.0


class Arrival(Struct):
    """A request at the moment at which it was sent. Times are in seconds.

    Attributes:
        at: The time since the beginning of the phase.
        late: How much later than planned the request was sent.
        unanswered: The number of earlier requests that had not ended.
        load: The load average of the machine over the last minute.
        outcome: How the request ended, once it has ended.
    """

    at: float
    late: float
    unanswered: int
    load: float
    outcome: Outcome | None = None


class Refusal(Struct, frozen=True):
    """A request that was refused with 429, and the events shortly before it. Times are in seconds.

    Attributes:
        at, late, unanswered, load: As in `Arrival`.
        sent, ended: The number of requests that were sent, and the number that ended, in the `RECENT_SECONDS` before
            the refused request was sent.
        message: The server's message, with the number of requests in progress and the number of waiting requests.
    """

    at: float
    late: float
    unanswered: int
    sent: int
    ended: int
    load: float
    message: str


class Phase(Struct):
    """Requests at one rate.

    Attributes:
        name: The name of the rate.
        rate: Requests per second.
        counts: The number of requests by the way in which they ended.
        wrong: The number of wrong answers. An answer is wrong if it differs from the answer that the same request gets
            when no other request runs.
        p50, p95: Latency of answers in seconds.
        peak: The highest memory use observed, in bytes.
        refusals: The requests that were refused with 429.
    """

    name: str
    rate: float
    counts: dict[str, int]
    wrong: int
    p50: float
    p95: float
    peak: int
    refusals: list[Refusal]


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--text-only", action="store_true", help="serve and request text only")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="duration of the first phase; the second phase lasts a third of this time, or twice the time in which the "
        "queue becomes full, whichever is longer",
    )
    parser.add_argument(
        "--load",
        type=float,
        default=0.8,
        help="rate of requests in the first phase, as a share of the measured rate of answers",
    )
    parser.add_argument("--clients", type=int, default=8, help="number of clients that measure the rate")
    parser.add_argument("--of-each", type=int, default=3, help="number of different requests of each kind")
    parser.add_argument("--disconnects", type=int, default=0, help="number of clients that leave before the phases")
    parser.add_argument("--growth", type=float, default=0.03, help="share by which memory may grow after the warm-up")
    parser.add_argument(
        "--free",
        type=float,
        default=1.0,
        help="seconds within which stages must free the requests of clients that left",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/soak"), help="directory for report.md, report.json, log")
    return parser


def main() -> None:
    run("Soak", parser().parse_args(), {"server": {"limits": LIMITS}}, keep_busy)


async def keep_busy(service: Service, session: aiohttp.ClientSession, arguments: argparse.Namespace) -> Findings:
    """Keep a server busy according to the arguments, and judge the results."""
    wanted = conversations(arguments.seed, of_each=arguments.of_each, speech=not arguments.text_only)
    trial = Trial(service, session, wanted, await ask_alone(session, service.url, wanted), arguments)
    if arguments.disconnects:
        await trial.disconnect()
    if arguments.seconds:
        await trial.soak()
    await trial.ask_again()
    return trial.findings


class Trial:
    """The trial of one server."""

    def __init__(
        self,
        service: Service,
        session: aiohttp.ClientSession,
        wanted: list[TrialConversation],
        right: dict[str, str],
        arguments: argparse.Namespace,
    ) -> None:
        self._service = service
        self._session = session
        self._wanted = wanted
        self._right = right
        self._arguments = arguments
        self._draw = random.Random(arguments.seed)
        self.findings = Findings()

    # --- clients that leave ---

    async def ask_again(self) -> None:
        """Repeat the requests that were sent at the beginning, and compare the answers."""
        again = await ask_alone(self._session, self._service.url, self._wanted)
        different = [name for name, digest in self._right.items() if digest != again[name]]
        self.findings.check("answers at the end equal those at the start", f"{len(different)} differ", not different)

    async def disconnect(self) -> None:
        """Let clients leave at every moment."""
        count = self._arguments.disconnects
        names = [name for name in MOMENTS if "sound" not in name or not self._arguments.text_only]
        for _ in range(min(WARM_ROUNDS, count // AT_ONCE)):  # warm up, so that memory reaches its usual size
            await self._leave([self._draw.choice(names) for _ in range(AT_ONCE)])
        before = self._service.pss_by_process()
        plan = [names[number % len(names)] for number in range(count)]
        self._draw.shuffle(plan)
        freed = [await self._leave(plan[first : first + AT_ONCE]) for first in range(0, count, AT_ONCE)]
        after = self._service.pss_by_process()
        found = self.findings
        found.tables["Memory over disconnects"] = memory_table(before, after)
        found.tables["Disconnects"] = [["moment", "clients"], *([name, str(plan.count(name))] for name in names)]
        found.details["seconds until freed"] = freed
        bound, growth = self._arguments.free, self._arguments.growth
        promise = (
            f"after {count} disconnects every stage is free within {bound:g} s, and reports it in its next heartbeat"
        )
        found.check(promise, f"{max(freed):.2f} s", max(freed) <= bound + HEARTBEAT_SECONDS)
        first, last = sum(before.values()), sum(after.values())
        found.check(
            f"memory grows by at most {growth:.0%} during the disconnects",
            _growth(first, last),
            last / first - 1 <= growth,
        )

    async def _leave(self, moments: list[str]) -> float:
        """Let a client leave at each of `moments`, all at once. Returns the seconds until no stage holds a request."""
        await asyncio.gather(*(self._leave_at(name) for name in moments))
        return await self._service.until_idle(self._session, 30.0)

    async def _leave_at(self, name: str) -> None:
        fitting = [each for each in self._wanted if each.streamed and (each.spoken or "sound" not in name)]
        await leave_at(self._service.port, self._draw.choice(fitting), MOMENTS[name], self._draw)

    # --- load ---

    async def soak(self) -> None:
        """Keep the server busy at two rates."""
        measured = await self._sustainable()
        rate = self._arguments.load * measured
        before = await self._idle_pss()
        sustainable = await self._phase("sustainable", rate, self._arguments.seconds)
        settled = await self._idle_pss()
        seconds = max(self._arguments.seconds / 3, 2 * fill_seconds(2 * rate, measured))
        double = await self._phase("twice the sustainable", 2 * rate, seconds)
        after = await self._idle_pss()
        phases = [sustainable, double]
        head = ["rate", "requests/s", "ended", "p50", "p95", "most memory"]
        found = self.findings
        found.tables["Load"] = [head, *(_row(phase) for phase in phases)]
        found.details["phases"] = msgspec.to_builtins(phases)
        found.tables["Refusals at the sustainable rate"] = _refusals(sustainable)
        wrong = sustainable.wrong + double.wrong
        first, most = sum(before.values()), max(sum(settled.values()), sum(after.values()))
        found.tables["Memory at rest"] = memory_table(before, after)
        asked = sum(sustainable.counts.values())
        expected = asked * refused_share(rate / measured, PLACES)
        seen = f"{_errors(sustainable)} ({expected:.1g} refusals expected of {asked} random arrivals)"
        found.check("no errors at the sustainable rate", seen, set(sustainable.counts) == {"answered"})
        found.check("only 429s at twice that rate", _errors(double), set(double.counts) <= {"answered", REFUSED})
        found.check("some requests are refused at twice that rate", _errors(double), REFUSED in double.counts)
        found.check("answers equal those without other requests", f"{wrong} differ", not wrong)
        growth = self._arguments.growth
        promise = f"memory at rest grows by at most {growth:.0%} after the warm-up"
        found.check(promise, _growth(first, most), most / first - 1 <= growth)

    async def _sustainable(self) -> float:
        """Answers per second when every client sends its next request as soon as it has an answer."""
        book = Book(self._right)
        options = {"clients": self._arguments.clients, "seed": self._arguments.seed}
        traffic = Traffic(self._session, self._service.url, self._wanted, book, **options)
        begin = time.monotonic()
        await asyncio.sleep(CALIBRATION_SECONDS)
        await traffic.end()
        return len(book.outcomes) / (time.monotonic() - begin)

    async def _idle_pss(self) -> dict[str, int]:
        """Memory by process when no request is running."""
        await self._service.until_idle(self._session, 60.0)
        return self._service.pss_by_process()

    async def _phase(self, name: str, rate: float, seconds: float) -> Phase:
        """Send requests at random moments for `seconds` seconds, on average `rate` requests per second."""
        loop = asyncio.get_running_loop()
        arrivals: list[Arrival] = []
        sending: set[asyncio.Task[None]] = set()
        peaks = [0]
        watching = asyncio.create_task(self._watch_memory(peaks))
        begin = at = loop.time()
        while (at := at + self._draw.expovariate(rate)) < begin + seconds:
            await asyncio.sleep(max(0.0, at - loop.time()))
            now = loop.time()
            arrival = Arrival(now - begin, now - at, len(sending), os.getloadavg()[0])
            arrivals.append(arrival)
            task = asyncio.create_task(self._send(arrival, self._draw.choice(self._wanted)))
            sending.add(task)
            task.add_done_callback(sending.discard)
        await asyncio.gather(*sending)
        watching.cancel()
        book = Book(self._right, [arrival.outcome for arrival in arrivals if arrival.outcome is not None])
        taken = sorted(each.ended - each.sent for each in book.outcomes if each.end == "answered")
        quantiles = (_quantile(taken, 0.5), _quantile(taken, 0.95))
        return Phase(name, rate, book.counts(), len(book.wrong), *quantiles, max(peaks), refusals(arrivals))

    async def _watch_memory(self, peaks: list[int]) -> None:
        """Append the memory of the server, in bytes, to `peaks` every few seconds. A thread reads the memory, because
        reading takes up to half a second.

        If the event loop itself read the memory, it would send nothing during this time, and then send all due requests
        at once.
        """
        while True:
            await asyncio.sleep(MEMORY_SECONDS)
            peaks.append(await asyncio.to_thread(self._service.pss_bytes))

    async def _send(self, arrival: Arrival, conversation: TrialConversation) -> None:
        arrival.outcome = await send(self._session, self._service.url, conversation)


def refusals(arrivals: list[Arrival]) -> list[Refusal]:
    """The requests among `arrivals` that were refused, with the events shortly before each refusal."""
    known = [(arrival, arrival.outcome) for arrival in arrivals if arrival.outcome is not None]
    refused = [(arrival, outcome) for arrival, outcome in known if outcome.code == REFUSED]
    sent = sorted(outcome.sent for _, outcome in known)
    ended = sorted(outcome.ended for _, outcome in known)

    def recent(times: list[float], until: float) -> int:
        return bisect.bisect_left(times, until) - bisect.bisect_left(times, until - RECENT_SECONDS)

    return [
        Refusal(
            arrival.at,
            arrival.late,
            arrival.unanswered,
            recent(sent, outcome.sent),
            recent(ended, outcome.sent),
            arrival.load,
            outcome.message or "",
        )
        for arrival, outcome in refused
    ]


def refused_share(load: float, places: int) -> float:
    """The expected share of refused requests, if requests arrive at random and the server works on all of them at
    once.

    This is the loss of an M/M/1/K queue. Requests in progress share the server (processor sharing), so the formula
    holds for any distribution of the work of a request.

    Args:
        load: Rate of arriving requests, divided by the rate at which the server can answer requests.
        places: The maximum number of requests that are in progress or wait.
    """
    if load == 1:
        return 1 / (places + 1)
    return (1 - load) * load**places / (1 - load ** (places + 1))


def fill_seconds(sent: float, answered: float) -> float:
    """The seconds until all places are taken; 0 if they never are. `sent` requests arrive per second, and `answered`
    requests are answered per second.
    """
    return PLACES / (sent - answered) if sent > answered else 0.0


def _row(phase: Phase) -> list[str]:
    ended = ", ".join(f"{count} {how}" for how, count in phase.counts.items())
    seconds = (f"{taken:.2f} s" for taken in (phase.p50, phase.p95))
    return [phase.name, f"{phase.rate:.1f}", ended, *seconds, f"{phase.peak / 2**20:.0f} MiB"]


def _refusals(phase: Phase) -> list[list[str]]:
    head = ["second", "sent late by", "unanswered", f"sent / ended in {RECENT_SECONDS:g} s", "load", "message"]
    return [head] + [
        [
            f"{each.at:.2f}",
            f"{each.late * 1000:.0f} ms",
            str(each.unanswered),
            f"{each.sent} / {each.ended}",
            f"{each.load:.1f}",
            each.message,
        ]
        for each in phase.refusals
    ]


def _quantile(values: list[float], share: float) -> float:
    return values[int(share * (len(values) - 1))] if values else 0.0


def _errors(phase: Phase) -> str:
    return ", ".join(f"{count} {how}" for how, count in phase.counts.items() if how != "answered") or "none"


def _growth(before: int, after: int) -> str:
    return f"{before / 2**20:.0f} → {after / 2**20:.0f} MiB, {after / before - 1:+.1%}"


if __name__ == "__main__":
    main()
