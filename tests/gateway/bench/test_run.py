"""Tests complete runs of the bench against a scripted server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.bench.plan import BenchPlan
from gateway.bench.report import Load
from gateway.bench.run import run
from gateway.bench.scenarios import Output, Scenario
from omni_pipeline.errors import StartupError
from tests.gateway.bench.scripted_server import (
    Refusal,
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

    def begin(self, what: str, total: int) -> None:
        self.begun.append((what, total))

    def advance(self) -> None:
        self.advanced += 1


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
            StartupError, match=r"unknown_parameter: Unknown\. \(.*with --natural the field is left out\.\)"
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
