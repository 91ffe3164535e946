"""Runs conversations at each number of sessions."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import msgspec
from msgspec import Struct

from gateway.bench.client import Client
from gateway.bench.cpu_clock import CpuClock
from gateway.bench.plan import BenchProgress
from gateway.bench.talk.report import TalkLevel, TalkReport, summarise_talk
from gateway.bench.talk.session import TalkSession, TalkSettings
from gateway.bench.talk.turns import Turn, TurnTimes, converse
from gateway.bench.talk.utterances import Utterance, load_utterances
from gateway.bench.timeline import Failure
from omni_pipeline import __version__
from omni_pipeline.errors import StartupError

# Each session begins at a random time within this number of seconds.
_SPREAD = 1.0
# If a talker interrupts an answer, the interruption comes at a random time between `_EARLIEST` and `_LATEST`, in
# seconds after the first sound of the answer.
_EARLIEST, _LATEST = 0.05, 0.6


class TalkPlan(Struct, frozen=True, kw_only=True):
    """The conversations to simulate.

    Attributes:
        settings: The server and the sessions. If the model is missing, the first model that the server lists is used.
        sessions: Each element is a number of sessions that are open at the same time. There is one measurement for each
            element. The measurements are made one after the other.
        turns: Number of turns to measure with each number of sessions, in all sessions together.
        warmup: Number of turns in one extra session before each measurement.
        interrupted_share: Fraction of the answers that the talker interrupts, from 0 to 1.
    """

    settings: TalkSettings
    sessions: Sequence[int]
    turns: int
    warmup: int
    interrupted_share: float
    seed: int
    media_dir: Path


async def run_talk(plan: TalkPlan, progress: BenchProgress) -> TalkReport:
    """Make all measurements of `plan`.

    Raises:
        StartupError: if no server answers, if all turns of a warm-up fail, or if there are no recordings.
    """
    utterances = load_utterances(plan.media_dir)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    if not plan.settings.model:
        async with Client(plan.settings.url, api_key=plan.settings.api_key) as client:
            settings = msgspec.structs.replace(plan.settings, model=await client.model())
        plan = msgspec.structs.replace(plan, settings=settings)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        talk = _Talk(plan, utterances, http, progress)
        levels = [await talk.level(sessions) for sessions in plan.sessions]
    return TalkReport(
        bench_version=__version__,
        url=plan.settings.url,
        model=plan.settings.model,
        started=started,
        seed=plan.seed,
        silence_ms=plan.settings.silence_ms,
        speed=plan.settings.speed,
        interrupted_share=plan.interrupted_share,
        levels=levels,
    )


class _Talk:
    def __init__(
        self, plan: TalkPlan, utterances: list[Utterance], http: aiohttp.ClientSession, progress: BenchProgress
    ) -> None:
        self._plan = plan
        self._utterances = utterances
        self._http = http
        self._progress = progress

    async def level(self, sessions: int) -> TalkLevel:
        await self._warm_up()
        self._progress.begin(_named(sessions), self._plan.turns)
        turns = self._turns(self._plan.turns, f"{self._plan.seed} {sessions}")
        clock = CpuClock()
        times: list[TurnTimes] = []
        await asyncio.gather(*(self._session(turns, number / sessions * _SPREAD, times) for number in range(sessions)))
        return summarise_talk(sessions, times, clock.share())

    async def _warm_up(self) -> None:
        if not self._plan.warmup:
            return
        self._progress.begin("warm-up", self._plan.warmup)
        times: list[TurnTimes] = []
        await self._session(self._turns(self._plan.warmup, f"{self._plan.seed} warm-up"), 0, times)
        failures = [turn.failure for turn in times if turn.failure is not None]
        if failures and len(failures) == len(times):
            raise StartupError(f"The server answered no turn of the warm-up. {failures[0].code}: {failures[0].message}")

    def _turns(self, count: int, seed: str) -> deque[Turn]:
        """A queue of turns. `count` is their number. All sessions get their turns from this queue."""
        choice = random.Random(f"turns {seed}")
        turns = deque[Turn]()
        for number in range(count):
            interrupts = choice.random() < self._plan.interrupted_share
            after = choice.uniform(_EARLIEST, _LATEST) if interrupts else None
            turns.append(Turn(self._utterances[number % len(self._utterances)], after))
        return turns

    async def _session(self, turns: deque[Turn], start: float, times: list[TurnTimes]) -> None:
        """Simulate conversations until there are no more turns. If a session fails, a new session continues with the
        next turns.
        """
        await asyncio.sleep(start)

        def report(turn: TurnTimes) -> None:
            times.append(turn)
            self._progress.advance()

        while turns:
            try:
                async with TalkSession(self._plan.settings, self._http) as session:
                    await converse(session, turns, self._plan.settings.speed, report)
            except (aiohttp.ClientError, TimeoutError) as error:
                if turns:
                    turns.popleft()
                    report(TurnTimes(failure=Failure("connection_failed", str(error) or "timeout")))


def _named(sessions: int) -> str:
    return f"{sessions} session{'' if sessions == 1 else 's'}"
