"""Runs the bench: at each load, sends warm-up requests and measured requests. If there is a baseline, the server and
the baseline take turns. A search for the gapless capacity chooses the loads itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from msgspec import Struct

from gateway.bench.baseline import Baseline
from gateway.bench.capacity import find_capacity
from gateway.bench.client import Client
from gateway.bench.cpu_clock import CpuClock
from gateway.bench.load import closed_loop, open_loop
from gateway.bench.plan import BenchPlan, BenchProgress
from gateway.bench.prompts import make_prompts
from gateway.bench.report import BenchReport, LevelReport, Load, Round, compare, summarise, summarise_mix
from gateway.bench.scenarios import BenchPrompt, Output, Scenario, body, explanation, kinds_of
from gateway.bench.steady import SteadyLevels
from gateway.bench.timeline import RequestTimes
from omni_pipeline import __version__
from omni_pipeline.errors import StartupError


async def run(plan: BenchPlan, progress: BenchProgress) -> BenchReport:
    """Make all measurements of `plan`.

    Raises:
        StartupError: if no server answers, if the server refuses every request of a warm-up, if media are missing, or
            if the baseline cannot run.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(plan.url, api_key=plan.api_key, timeout=plan.timeout))
        model = plan.model or await client.model()
        baseline = None
        if plan.baseline is not None:
            progress.begin("loading the baseline", 1)
            baseline = await stack.enter_async_context(Baseline(plan.baseline))
            progress.advance()
        bench = _Bench(plan, model, client, baseline, progress)
        capacity = None
        if plan.capacity is None:
            levels = [await bench.level(load) for load in plan.loads]
        else:
            await bench.warm_up(Load(1))
            steady = SteadyLevels(plan, model, client, progress)
            capacity = await find_capacity(steady.measure, share=plan.capacity.share, most=plan.capacity.most)
            levels = steady.reports()
    return BenchReport(
        bench_version=__version__,
        url=plan.url,
        model=model,
        started=started,
        seed=plan.seed,
        scenario=plan.scenario,
        levels=levels,
        capacity=capacity,
    )


class _Sent(Struct, frozen=True):
    """The requests of one set, after all answers have arrived.

    Attributes:
        kinds, timelines: The kind and the times of each request, in the order in which they were sent.
        seconds: Time until the last answer was complete.
        client_cpu: CPU time of the bench during `seconds`, divided by `seconds`.
    """

    kinds: list[Scenario]
    timelines: list[RequestTimes]
    seconds: float
    client_cpu: float


class _Bench:
    def __init__(
        self, plan: BenchPlan, model: str, client: Client, baseline: Baseline | None, progress: BenchProgress
    ) -> None:
        self._plan = plan
        self._model = model
        self._client = client
        self._baseline = baseline
        self._progress = progress

    async def level(self, load: Load) -> LevelReport:
        """Make all measurements at one load."""
        await self.warm_up(load)
        if self._baseline is None:
            prompts = self._prompts(load, self._plan.requests, "measured")
            self._progress.begin(str(load), len(prompts))
            sent = await self._ask(prompts, load)
            if self._plan.scenario.output is Output.MIXED:
                report = summarise_mix(sent.kinds, load, sent.timelines, sent.seconds)
            else:
                report = summarise(self._plan.scenario, load, sent.timelines, sent.seconds)
            report.client_cpu = sent.client_cpu
            return report
        rounds = await self._rounds(load, self._baseline)
        timelines = [timeline for one in rounds for timeline in one.timelines]
        report = summarise(self._plan.scenario, load, timelines, sum(one.seconds for one in rounds))
        report.baseline = compare(self._plan.scenario, rounds)
        return report

    async def _rounds(self, load: Load, baseline: Baseline) -> list[Round]:
        assert load.concurrency is not None
        count = -(-self._plan.requests // load.concurrency)
        prompts = self._prompts(load, count * load.concurrency, "measured")
        self._progress.begin(f"{load}, and the baseline", 2 * len(prompts))
        rounds = []
        for start in range(0, len(prompts), load.concurrency):
            turn = prompts[start : start + load.concurrency]
            sent = await self._ask(turn, load)
            answers = []
            for prompt in turn:
                answers.append(await baseline.answer(self._plan.scenario, prompt))
                self._progress.advance()
            rounds.append(Round(sent.seconds, sent.timelines, answers))
        return rounds

    async def warm_up(self, load: Load) -> None:
        """Send the warm-up requests, which are not measured.

        Raises:
            StartupError: if all of these requests fail.
        """
        prompts = self._prompts(load, self._plan.warmup, "warm-up")
        if not prompts:
            return
        self._progress.begin(f"{load}, warm-up", len(prompts))
        timelines = (await self._ask(prompts, load)).timelines
        if self._baseline is not None:
            await self._baseline.answer(self._plan.scenario, prompts[0])
        failures = [timeline.failure for timeline in timelines if timeline.failure is not None]
        if len(failures) == len(timelines):
            failure = failures[0]
            reason = explanation(failure.param, failure.message)
            raise StartupError(
                f"The server answered none of the warm-up requests. {failure.code}: {failure.message}"
                + (f" ({reason}.)" if reason else "")
            )

    def _prompts(self, load: Load, count: int, purpose: str) -> list[BenchPrompt]:
        """Prompts that are different for each load and each `purpose` (warm-up or measurement). So the server has not
        answered any of these prompts before.
        """
        plan = self._plan
        return make_prompts(plan.scenario, count, seed=f"{plan.seed} {purpose} {load}", directory=plan.media_dir)

    async def _ask(self, prompts: Sequence[BenchPrompt], load: Load) -> _Sent:
        """Send all requests, and wait for the answers."""
        timelines: dict[int, RequestTimes] = {}
        kinds = kinds_of(self._plan.scenario, len(prompts), self._plan.seed)
        bodies = [body(kind, prompt, self._model) for kind, prompt in zip(kinds, prompts, strict=True)]

        async def ask(number: int) -> None:
            timelines[number] = await self._client.ask(bodies[number], streamed=kinds[number].streamed)
            self._progress.advance()

        clock = CpuClock()
        began = time.perf_counter()
        if load.rate is not None:
            await open_loop(range(len(bodies)), load.rate, self._plan.seed, ask)
        else:
            assert load.concurrency is not None
            await closed_loop(range(len(bodies)), load.concurrency, ask)
        seconds = time.perf_counter() - began
        return _Sent(kinds, [timelines[number] for number in range(len(bodies))], seconds, clock.share())
