"""Measures levels of steady load for the search for the gapless capacity.

The streams of a level start at random times within the duration of one answer. If the N streams started together, all
answers of a fixed length would also end together, and the server would get bursts of N requests again and again. Real
users do not send requests in bursts or at regular intervals.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Iterator, Sequence

from msgspec import Struct

from gateway.bench.capacity import Trial
from gateway.bench.client import Client
from gateway.bench.cpu_clock import CpuClock
from gateway.bench.load import spread_starts, steady_loop
from gateway.bench.plan import BenchPlan, BenchProgress
from gateway.bench.prompts import endless_prompts
from gateway.bench.report import LevelReport, Load, Throughput, is_gapless, summarise, throughput
from gateway.bench.scenarios import body
from gateway.bench.timeline import RequestTimes

# Number of measured requests of each stream.
_PER_STREAM = 3
# Seconds that a stream waits after a failure, so that a server that refuses requests is not flooded.
_PAUSE = 1.0


class _Measurement(Struct):
    """The measurements at one level.

    Attributes:
        timelines: The measured requests.
        seconds: Time during which every stream was busy.
        throughput: The throughput of all requests during this time.
        client_cpu: CPU time of the bench, divided by the elapsed time.
    """

    timelines: list[RequestTimes]
    seconds: float
    throughput: Throughput
    client_cpu: float


class SteadyLevels:
    """Measures levels, and keeps the measurements."""

    def __init__(self, plan: BenchPlan, model: str, client: Client, progress: BenchProgress) -> None:
        self._plan = plan
        self._model = model
        self._client = client
        self._progress = progress
        self._measured: dict[int, list[_Measurement]] = {}

    async def measure(self, streams: int) -> Trial:
        """Measure a level. `streams` is the number of requests in flight. If a level is measured again, the second
        measurement uses new requests.
        """
        measurement = await self._run(streams)
        self._measured.setdefault(streams, []).append(measurement)
        timelines = measurement.timelines
        trial = Trial(
            streams=streams,
            answers=len(timelines),
            gapless=sum(is_gapless(self._plan.scenario, timeline) for timeline in timelines),
            audio_seconds_per_second=measurement.throughput.audio_seconds,
        )
        self._progress.note(
            f"{Load(streams)}: {trial.gapless} of {trial.answers} answers without a gap, "
            f"{trial.audio_seconds_per_second:.2f} s of audio received per second"
        )
        return trial

    def reports(self) -> list[LevelReport]:
        """The results of all levels, ordered by the number of streams. A level that was measured twice has one
        report.
        """
        return [self._report(streams, self._measured[streams]) for streams in sorted(self._measured)]

    async def _run(self, streams: int) -> _Measurement:
        seed = f"{self._plan.seed} capacity {streams} {len(self._measured.get(streams, []))}"
        count = max(self._plan.requests, _PER_STREAM * streams)
        # approximate number of all requests, including the requests before and after the measured requests
        ready = count + 2 * streams
        requests = enumerate(self._bodies(seed, ready))
        timelines: dict[int, RequestTimes] = {}

        async def ask(request: tuple[int, bytes]) -> None:
            number, content = request
            timelines[number] = await self._client.ask(content)
            self._progress.advance()
            if timelines[number].failure is not None:
                await asyncio.sleep(_PAUSE)

        self._progress.begin(str(Load(streams)), ready)
        clock = CpuClock()
        starts = spread_starts(streams, self._answer_seconds(streams), seed)
        window = await steady_loop(requests, starts, count, ask)
        return _Measurement(
            timelines=[timelines[number] for number, _ in window.items],
            seconds=window.ended - window.began,
            throughput=throughput(timelines.values(), window.began, window.ended),
            client_cpu=clock.share(),
        )

    def _bodies(self, seed: str, ready: int) -> Iterator[bytes]:
        """Returns an endless iterator over request bodies. The first `ready` bodies are made by this call, so that the
        server does not wait for requests.
        """
        plan = self._plan
        prompts = endless_prompts(plan.scenario, seed=seed, directory=plan.media_dir)
        bodies = (body(plan.scenario, prompt, self._model) for prompt in prompts)
        return itertools.chain(list(itertools.islice(bodies, ready)), bodies)

    def _answer_seconds(self, streams: int) -> float:
        """The median duration of a complete answer at the largest measured level that is not above `streams`. The
        result is 0 if no level up to `streams` was measured, or if no answer at this level was complete.
        """
        below = max((level for level in self._measured if level <= streams), default=None)
        if below is None:
            return 0.0
        times = [one.ended for run in self._measured[below] for one in run.timelines if one.failure is None]
        return statistics.median(times) if times else 0.0

    def _report(self, streams: int, runs: Sequence[_Measurement]) -> LevelReport:
        timelines = [timeline for run in runs for timeline in run.timelines]
        report = summarise(self._plan.scenario, Load(streams), timelines, sum(run.seconds for run in runs))
        report.requests_per_second = statistics.mean(run.throughput.requests for run in runs)
        report.tokens_per_second = statistics.mean(run.throughput.tokens for run in runs)
        report.audio_seconds_per_second = statistics.mean(run.throughput.audio_seconds for run in runs)
        report.client_cpu = max(run.client_cpu for run in runs)
        return report
