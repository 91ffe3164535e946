"""Tests `sgl-omni bench` as a user sees it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.conftest import ROOT
from tests.gateway.bench.scripted_server import Refusal, ending, in_content, ours, scripted, text, whole
from tests.server import Server, fused

BENCH = [sys.executable, "-m", "omni_pipeline.cli", "bench"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


async def bench_scripted(*arguments: str) -> tuple[int | None, str, str]:
    """Run the bench against a server in this event loop. Returns exit status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        *BENCH, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


@pytest.fixture(scope="module")
def nano(checkpoints: Any) -> Path:
    return checkpoints("nano")


@pytest.fixture(scope="module")
def server(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(nano, tmp_path_factory.mktemp("server"), fused()).start()
    yield server
    assert server.stop() == 0


def test_real_server_is_measured(server: Server, tmp_path: Path) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    result = bench(
        *["--url", server.url, "--input", "mixed", "--prompt-words", "8", "--tokens", "12", "--concurrency", "1"],
        *["--concurrency", "2", "--rate", "20", "--requests", "4", "--json", str(figures), "--plot", str(plot)],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads(figures.read_text())
    assert report["scenario"]["input"] == "mixed"
    assert [level["load"] for level in report["levels"]] == [
        {"concurrency": 1, "rate": None},
        {"concurrency": 2, "rate": None},
        {"concurrency": None, "rate": 20.0},
    ]
    for level in report["levels"]:
        assert (level["requests"], level["completed"], level["errors"], level["wrong_length"]) == (4, 4, {}, 0)
        assert 0 < level["ttft"]["p50"] <= level["ttft"]["p99"] <= level["e2e"]["max"]
        assert level["tokens_per_second"] == pytest.approx(12 * level["requests_per_second"])
        assert level["ttfa"] is None
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    for words in ("1 stream: 4 of 4 answered", "20 req/s", "first text (TTFT)", "p99", "tokens/s"):
        assert words in result.stdout


def test_prompts_that_the_server_has_seen_are_noticed(server: Server) -> None:
    def run(seed: int) -> str:
        result = bench("--url", server.url, "--tokens", "2", "--requests", "4", "--seed", str(seed))
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "prefix cache" not in run(70)
    assert "% of the prompts' tokens came from the prefix cache" in run(70)
    assert "prefix cache" not in run(71)


def test_real_server_is_compared_with_hugging_face(server: Server, nano: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    result = bench(
        *["--url", server.url, "--prompt-words", "8", "--tokens", "12", "--requests", "2", "--baseline"],
        *["--model-path", str(nano), "--json", str(figures)],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    [level] = json.loads(figures.read_text())["levels"]
    assert level["baseline"]["rounds"] == 2
    assert level["baseline"]["reference_seconds"]["count"] == 2
    assert level["baseline"]["reference_wrong_length"] == 0
    assert level["baseline"]["total_ratio"] > 0
    assert (
        level["baseline"]["first_text_ratio"] > level["baseline"]["total_ratio"]
    )  # the server streams its answer, but the reference does not
    assert "Hugging Face" in result.stdout


@pytest.mark.parametrize("sound", [ours, in_content], ids=["delta.audio", "delta.content"])
async def test_speech_is_compared_with_hugging_face(sound: Any, nano: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    async with scripted([text("a"), sound(0.08), text("b"), sound(0.24), *ending(3)]) as server:
        status, _, errors = await bench_scripted(
            *["--url", server.url, "--output", "speech", "--tokens", "3", "--audio-frames", "4", "--requests", "2"],
            *["--concurrency", "2", "--baseline", "--model-path", str(nano), "--json", str(figures)],
        )
    assert status == 0, errors
    [level] = json.loads(figures.read_text())["levels"]
    assert (level["completed"], level["wrong_length"], level["continuous"]) == (2, 0, 1.0)
    assert level["baseline"]["rounds"] == 1
    assert level["baseline"]["reference_wrong_length"] == 0
    assert level["baseline"]["first_audio_ratio"] > 0


def test_speech_of_a_text_only_server_is_refused_with_the_flag(server: Server) -> None:
    result = bench("--url", server.url, "--output", "speech", "--natural")
    assert result.returncode == 1
    assert "(`modalities` comes from --output.)" in result.stderr


async def test_run_without_an_answer_fails_after_its_report() -> None:
    async with scripted(Refusal(429, {"error": {"message": "full", "code": "too_many_requests"}})) as server:
        status, output, errors = await bench_scripted("--url", server.url, "--requests", "3", "--warmup", "0")
    assert status == 1
    assert "3 × too_many_requests: full" in output
    assert errors == "error: No request was answered.\n"


def test_baseline_that_cannot_run_says_why(server: Server, tmp_path: Path) -> None:
    result = bench("--url", server.url, "--baseline", "--model-path", str(tmp_path))
    assert result.returncode == 1
    assert "The Hugging Face baseline ended with exit status 1:" in result.stderr


async def test_capacity_is_printed_and_written(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    async with scripted([text("a"), ours(4.8), *ending(64)]) as server:
        status, output, errors = await bench_scripted(
            *["--url", server.url, "--capacity", "--max-streams", "2", "--requests", "3", "--gapless-share", "0.9"],
            *["--json", str(figures)],
        )
    assert status == 0, errors
    report = json.loads(figures.read_text())
    assert report["scenario"]["output"] == "speech"
    assert (report["capacity"]["streams"], report["capacity"]["fails_at"]) == (2, None)
    assert [(trial["streams"], trial["answers"]) for trial in report["capacity"]["trials"]] == [(1, 3), (2, 6)]
    assert "gapless capacity: at least 2 streams (at least 90 % of the answers" in output
    assert "audio received per second:" in output
    assert "2 streams: 6 of 6 answers without a gap" in errors


async def test_kinds_of_a_mix_are_printed(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Any:
        if not body.get("stream"):
            return whole(64, 4.8)
        return [text("a"), ours(4.8), *ending(64)] if "audio" in body["modalities"] else [text("a"), *ending(64)]

    figures = tmp_path / "figures.json"
    async with scripted(answer) as server:
        status, output, errors = await bench_scripted(
            *["--url", server.url, "--output", "mixed", "--concurrency", "2", "--requests", "8"],
            *["--json", str(figures)],
        )
    assert status == 0, errors
    [level] = json.loads(figures.read_text())["levels"]
    assert {kind: part["completed"] for kind, part in level["kinds"].items()} == {
        "text": 2, "speech": 4, "whole-speech": 2,
    }  # fmt: skip
    for words in ("text: 2 of 2 answered", "speech: 4 of 4 answered", "whole-speech: 2 of 2 answered"):
        assert words in output


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--baseline"], "--model-path"),
        (["--model-path", "x"], "--baseline"),
        (["--baseline", "--model-path", "x", "--rate", "1"], "--rate"),
        (["--plot", "figures.png"], "figures.svg"),
        (["--json", "nowhere/figures.json"], "nowhere"),
        (["--input", "smell"], "--input"),
        (["--concurrency", "0"], "--concurrency"),
        (["--capacity", "--rate", "1"], "--rate"),
        (["--realtime", "--rate", "1"], "--rate"),
        (["--realtime", "--capacity"], "--capacity"),
        (["--realtime", "--input", "image"], "--input image"),
        (["--realtime", "--output", "speech"], "--output speech"),
        (["--realtime", "--plot", "figures.svg"], "--plot"),
        (["--realtime", "--interruptions", "1.5"], "--interruptions"),
        (["--interruptions", "0"], "--realtime"),
        (["--silence-ms", "0"], "--realtime"),
        (["--talk-speed", "1"], "--realtime"),
        (["--capacity", "--concurrency", "2"], "--concurrency"),
        (["--capacity", "--output", "text"], "--output text"),
        (["--capacity", "--output", "mixed"], "--output mixed"),
        (["--capacity", "--baseline", "--model-path", "x"], "--baseline"),
        (["--gapless-share", "0.9"], "--capacity"),
        (["--max-streams", "4"], "--capacity"),
        (["--baseline", "--model-path", "x", "--output", "mixed"], "--output mixed"),
    ],
    ids=str,
)
def test_impossible_flags_are_a_usage_error(arguments: list[str], flag: str) -> None:
    result = bench(*arguments)
    assert result.returncode == 2
    assert flag in result.stderr
