"""`sgl-omni simulate` predicts a deployment without a checkpoint and without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from omni_pipeline.cli import app

TWO = ("--gpus", "2xH100-80GB")
SHORT = ("--answer-tokens", "8", "--audio-frames", "12", "--seconds", "5")


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *SHORT, *arguments])


def as_json(*arguments: str) -> dict[str, Any]:
    result = simulate(*arguments, "--json")
    assert result.exit_code == 0, result.output
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def test_the_tables_have_each_load_each_busy_stage_and_the_bottleneck() -> None:
    result = simulate(*TWO, "--streams", "1", "--streams", "8")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["load", "1 stream", "8 streams"]
    stages = [line.split()[0] for line in lines if "GPU 1 (H100-80GB)" in line and "%" in line]
    assert stages == ["GPU", "talker_ar", "code_predictor", "code2wav", "With"]
    assert "is the bottleneck" in result.stdout
    assert "Laws: Straight lines through the times" in result.stdout


def test_equal_arguments_give_equal_output() -> None:
    assert as_json(*TWO, "--rate", "2", "--seed", "5") == as_json(*TWO, "--rate", "2", "--seed", "5")
    assert as_json(*TWO, "--rate", "2", "--seed", "6") != as_json(*TWO, "--rate", "2", "--seed", "5")


def test_slow_steps_make_a_slow_server() -> None:
    fast, slow = (as_json(*TWO, "--streams", "8", "--slow", slow)["levels"][0]["prediction"] for slow in ("1", "4"))
    assert slow["answers_per_second"] < fast["answers_per_second"] / 3


def test_replicas_answer_more_and_what_if_finds_them() -> None:
    one = as_json(*TWO, "--streams", "16", "--what-if")
    gained = {change["change"]: change for change in one["changes"]}
    assert gained["one more replica of voice"]["gpus"] == 1
    assert gained["one more replica of voice"]["gain"] > 0.1
    assert not any("encoder" in name for name in gained)
    two = as_json("--gpus", "3xH100-80GB", "--streams", "16", "--set", "groups.voice.replicas=2",
                  "--set", "groups.voice.gpus=[[1],[2]]")  # fmt: skip
    predicted = gained["one more replica of voice"]["prediction"]["answers_per_second"]
    assert two["levels"][0]["prediction"]["answers_per_second"] == pytest.approx(predicted)


def test_a_shared_gpu_can_be_divided() -> None:
    found = as_json("--gpus", "1xH100-80GB", "--colocate", "--streams", "8", "--what-if")
    gained = {change["change"]: change["gain"] for change in found["changes"]}
    assert gained["thinker on one more GPU"] > 0
    assert gained["one more replica of all"] > 0.05
    # the worker that has the stages of `voice` also has all other stages
    assert "one more replica of voice" not in gained


def test_the_gapless_capacity_is_searched() -> None:
    found = as_json(*TWO, "--streams", "1", "--capacity", "--max-streams", "2")["capacity"]
    assert (found["streams"], found["fails_at"]) == (2, None)


def test_text_only_has_no_speech() -> None:
    found = as_json("--gpus", "1xH100-80GB", "--text-only", "--streams", "4")["levels"][0]["prediction"]
    assert found["answers_per_second"] > 0
    assert found["audio_seconds_per_second"] == 0
    assert found["ttfa"] == {"mean": None, "p50": None, "p90": None}


def test_a_far_host_costs_time() -> None:
    there = ("--set", "hosts.b={}", "--set", "groups.vocoder.hosts=[b]", "--set", "cluster.listen=127.0.0.1",
             "--hosts", "main=2xH100-80GB,b=1xH100-80GB", "--streams", "1")  # fmt: skip
    near, far = (as_json(*there, "--latency-ms", ms)["levels"][0]["prediction"] for ms in ("0", "100"))
    # frames go to the host b, and the sound comes back to the main host
    assert far["ttfa"]["p50"] - near["ttfa"]["p50"] == pytest.approx(0.2, rel=0.05)
    assert set(far["host_bytes_per_second"]) == {"main → b", "b → main"}


def test_a_checkpoint_limits_the_batches(data: Path) -> None:
    model = ("--model-path", str(data / "qwen3_omni_30b"))
    long = ("--prompt-tokens", "30000", "--streams", "16", "--seconds", "60")
    limited, free = as_json(*TWO, *model, *long), as_json(*TWO, *long)
    assert limited["notes"] == []
    assert free["notes"][0].startswith("No checkpoint directory is given")
    assert limited["levels"][0]["prediction"]["ttft"]["p90"] > free["levels"][0]["prediction"]["ttft"]["p90"]


def test_the_document_shows_the_output_of_its_first_command(monkeypatch: pytest.MonkeyPatch) -> None:
    document = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text()
    section = document.partition("## Predicting a deployment\n")[2]
    command = section.partition("```sh\nsgl-omni ")[2].partition("\n")[0]
    shown = section.partition("<!-- simulate -->\n```\n")[2].partition("```")[0]
    monkeypatch.setenv("COLUMNS", "100")
    drawn = [line.rstrip() for line in CliRunner().invoke(app, command.split()).stdout.splitlines()]
    last = next(index for index, line in enumerate(drawn) if line.startswith("Laws: "))
    assert shown.splitlines() == drawn[:last]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--laws", "guess"), "--laws guess: there is no file and no set of laws with this name"),
        (("--media-tokens", "500"), "--media-tokens"),
        (("--text-only", "--capacity"), "--capacity: only spoken answers"),
        (("--set", "groups.voice.replicas=0"), "replicas"),
        (("--set", "hosts.b={}", "--set", "groups.voice.hosts=[b]", "--set", "cluster.listen=127.0.0.1"), "--hosts"),
    ],
)
def test_a_mistake_is_named(arguments: tuple[str, ...], reason: str) -> None:
    result = simulate(*TWO, *arguments)
    assert result.exit_code != 0
    assert reason in str(result.exception) + result.output
