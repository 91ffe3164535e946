"""Tests complete runs of the bench against a scripted server."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from gateway.bench.load import spread_starts
from gateway.bench.plan import BenchPlan, CapacityGoal
from gateway.bench.report import BenchReport, Load
from gateway.bench.run import run
from gateway.bench.scenarios import Output, Scenario
from omni_pipeline.errors import StartupError
from tests.gateway.bench.scripted_server import (
    Refusal,
    ScriptedServer,
    Step,
    WholeAnswer,
    ending,
    ours,
    scripted,
    text,
    whole,
)

REFUSED = Refusal(400, {"error": {"message": "Unknown.", "param": "ignore_eos", "code": "unknown_parameter"}})


class Watcher:
    """A `plan.BenchProgress` that records its calls."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int]] = []
        self.advanced = 0
        self.notes: list[str] = []

    def begin(self, what: str, total: int) -> None:
        self.begun.append((what, total))

    def advance(self) -> None:
        self.advanced += 1

    def note(self, result: str) -> None:
        self.notes.append(result)


def plan(url: str, data: Path, **changes: Any) -> BenchPlan:
    fields: dict[str, Any] = {
        "url": url, "model": None, "api_key": None, "scenario": Scenario(tokens=2), "loads": [Load(concurrency=2)],
        "requests": 6, "warmup": 1, "seed": 0, "timeout": 30.0, "media_dir": data,
    }  # fmt: skip
    return BenchPlan(**fields | changes)


async def test_each_load_gets_its_requests_after_a_warm_up(data: Path) -> None:
    watcher = Watcher()
    async with scripted([text("a"), 0.01, text("b"), *ending(2)]) as server:
        report = await run(plan(server.url, data, loads=[Load(concurrency=3), Load(rate=500.0)]), watcher)
    assert [(level.load, level.requests, level.completed) for level in report.levels] == [
        (Load(concurrency=3), 6, 6),
        (Load(rate=500.0), 6, 6),
    ]
    assert watcher.begun == [
        ("3 streams, warm-up", 1), ("3 streams", 6), ("500 req/s, warm-up", 1), ("500 req/s", 6),
    ]  # fmt: skip
    assert watcher.advanced == 14
    assert len({body["messages"][0]["content"] for body in server.bodies}) == 14


async def test_concurrency_is_what_the_server_sees(data: Path) -> None:
    async with scripted([text("a"), 0.02, text("b"), *ending(2)]) as server:
        await run(plan(server.url, data, loads=[Load(concurrency=3)], requests=9), Watcher())
    assert server.most == 3


async def test_model_is_the_one_that_the_server_lists(data: Path) -> None:
    async with scripted(ending(2)) as server:
        assert (await run(plan(server.url, data), Watcher())).model == "scripted"
        assert {body["model"] for body in server.bodies} == {"scripted"}


async def test_speech_is_reported_with_its_continuity(data: Path) -> None:
    scenario = Scenario(tokens=1, output=Output.SPEECH, audio_frames=5)
    steady = [text("a"), ours(0.2), 0.01, ours(0.2), *ending(1)]
    async with scripted(steady) as server:
        [level] = (await run(plan(server.url, data, scenario=scenario), Watcher())).levels
    assert level.ttft.p50 <= level.ttfa.p50
    assert (level.continuous, level.wrong_length) == (1.0, 0)


async def test_late_sound_breaks_the_continuity(data: Path) -> None:
    scenario = Scenario(tokens=1, output=Output.SPEECH, audio_frames=3)
    async with scripted([text("a"), ours(0.1), 0.5, ours(0.1), *ending(1)]) as server:
        [level] = (await run(plan(server.url, data, scenario=scenario, requests=2), Watcher())).levels
    assert level.continuous == 0.0
    assert level.underruns is not None
    assert level.underruns.count == 2


async def test_answers_of_another_length_are_counted(data: Path) -> None:
    async with scripted([text("a"), *ending(1)]) as server:
        [level] = (await run(plan(server.url, data), Watcher())).levels
    assert (level.completed, level.wrong_length) == (6, 6)


async def test_refused_warm_up_ends_the_run_and_names_the_flag(data: Path) -> None:
    async with scripted(REFUSED) as server:
        with pytest.raises(
            StartupError, match=r"unknown_parameter: Unknown\. \(.*with --natural, the field is not sent\.\)"
        ):
            await run(plan(server.url, data), Watcher())
        assert len(server.bodies) == 1


async def test_errors_among_answers_are_reported(data: Path) -> None:
    full = Refusal(429, {"error": {"message": "full", "code": "too_many_requests"}})
    answers = iter([ending(2), ending(2), full, ending(2), full, ending(2), ending(2)])
    async with scripted(lambda _: next(answers)) as server:
        [level] = (await run(plan(server.url, data, loads=[Load(concurrency=1)]), Watcher())).levels
    assert (level.requests, level.completed) == (6, 4)
    assert level.errors["too_many_requests"].count == 2


SPOKEN = Scenario(tokens=1, output=Output.SPEECH, audio_frames=5)
STEADY = [text("a"), ours(0.2), 0.01, ours(0.2), *ending(1)]


async def test_mixed_run_reports_each_kind(data: Path) -> None:
    def answer(body: dict[str, Any]) -> list[Step] | WholeAnswer:
        if not body.get("stream"):
            return whole(1, 0.4)
        return STEADY if "audio" in body["modalities"] else [text("a"), *ending(1)]

    scenario = Scenario(tokens=1, output=Output.MIXED, audio_frames=5)
    async with scripted(answer) as server:
        [level] = (await run(plan(server.url, data, scenario=scenario, requests=8), Watcher())).levels
    assert (level.completed, level.errors, level.wrong_length) == (8, {}, 0)
    assert {kind: part.requests for kind, part in level.kinds.items()} == {"text": 2, "speech": 4, "whole-speech": 2}
    assert level.kinds[Output.SPEECH].continuous == 1.0
    assert level.kinds[Output.TEXT].ttfa is None
    assert level.kinds[Output.WHOLE_SPEECH].ttft is None
    assert level.kinds[Output.WHOLE_SPEECH].e2e.count == 2


async def test_busy_bench_is_seen(data: Path) -> None:
    async with scripted([text("a"), *ending(2)]) as server:
        [level] = (await run(plan(server.url, data), Watcher())).levels
    assert level.client_cpu > 0


async def search(
    data: Path, script: Any, most: int = 16, **changes: Any
) -> tuple[BenchReport, Watcher, ScriptedServer]:
    """Search the capacity of a server whose answers depend on the number of requests in progress."""
    watcher = Watcher()
    async with scripted(lambda _: script(server.open)) as server:
        goal = CapacityGoal(share=0.99, most=most)
        report = await run(plan(server.url, data, scenario=SPOKEN, capacity=goal, **changes), watcher)
    return report, watcher, server


async def test_capacity_is_the_number_of_streams_that_the_server_keeps_up_with(data: Path) -> None:
    """With up to three streams the server is much faster than a player; with four or more it is too slow."""
    late = [text("a"), ours(0.2), 0.4, ours(0.2), *ending(1)]
    report, watcher, server = await search(data, lambda streams: STEADY if streams <= 3 else late)
    assert (report.capacity.streams, report.capacity.fails_at) == (3, 4)
    assert [level.load for level in report.levels] == [Load(1), Load(2), Load(3), Load(4)]
    assert [level.requests for level in report.levels] == [6, 6, 9, 12]
    assert [level.continuous == 1.0 for level in report.levels] == [True, True, True, False]
    assert server.most == 4
    assert [begun for begun, _ in watcher.begun] == [
        "1 stream, warm-up",
        "1 stream",
        "2 streams",
        "4 streams",
        "3 streams",
    ]
    assert watcher.notes[0].startswith("1 stream: 6 of 6 answers without a gap")
    prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert len(set(prompts)) == len(prompts)


async def test_streams_begin_within_the_length_of_an_answer(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spreads: list[tuple[int, float]] = []

    def spread(streams: int, seconds: float, seed: str) -> list[float]:
        spreads.append((streams, seconds))
        return spread_starts(streams, seconds, seed)

    monkeypatch.setattr("gateway.bench.steady.spread_starts", spread)
    report, _, _ = await search(data, lambda _: STEADY, most=4)
    once, twice, _ = report.levels
    assert [streams for streams, _ in spreads] == [1, 2, 4]
    assert [seconds for _, seconds in spreads] == pytest.approx([0.0, once.e2e.p50, twice.e2e.p50])


async def test_refusals_are_not_gapless_and_are_not_repeated_at_once(data: Path) -> None:
    full = Refusal(429, {"error": {"message": "full", "code": "too_many_requests"}})
    report, _, _ = await search(data, lambda streams: STEADY if streams <= 1 else full, most=2)
    assert report.capacity.streams == 1
    assert 1 <= report.levels[-1].errors["too_many_requests"].count <= 2


async def test_level_near_the_mark_is_measured_again_with_other_requests(data: Path) -> None:
    at_once = [text("a"), ours(0.4), *ending(1)]
    late = [text("a"), ours(0.2), 0.4, ours(0.2), *ending(1)]
    answers = itertools.chain([at_once, late], itertools.repeat(at_once))
    report, watcher, server = await search(data, lambda _: next(answers), most=1, requests=50)
    [level] = report.levels
    assert (level.requests, level.underruns.count, report.capacity.streams) == (100, 1, 1)
    assert len(watcher.notes) == 2
    prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert len(set(prompts)) == len(prompts)


async def test_server_that_always_stutters_has_capacity_zero(data: Path) -> None:
    late = [text("a"), ours(0.2), 0.4, ours(0.2), *ending(1)]
    report, _, _ = await search(data, lambda _: late, most=2, requests=2)
    assert (report.capacity.streams, report.capacity.fails_at) == (0, 1)
    assert report.capacity.audio_seconds_per_second is None
