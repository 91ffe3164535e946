"""`sgl-omni plan` draws which stage is on which device, reports whether the model fits, and suggests changes with which
it would fit.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from omni_pipeline.cli import app
from omni_pipeline.gpus import parse

ONE, FOUR = ("--gpus", "1xH100-80GB"), ("--gpus", "4x24GB")


@pytest.fixture(scope="module")
def model(data: Path) -> str:
    return str(data / "qwen3_omni_30b")


def plan(model: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", "--model-path", model, *arguments])


def as_json(model: str, *arguments: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(plan(model, "--json", *arguments).stdout)
    return parsed


def test_what_fits_is_drawn_with_who_sits_where(model: str) -> None:
    result = plan(model, "--gpus", "2xH100-80GB")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    first, second = (index for index, line in enumerate(lines) if line.startswith("GPU "))
    assert "thinker" in lines[first + 1]
    assert "talker_ar" in lines[second + 1]
    assert [line.split()[0] for line in lines[first + 3 : first + 6]] == ["image_encoder", "audio_encoder", "thinker"]
    assert lines[-1].startswith("It fits, with room for 32 requests of 2,048 tokens in and 512 out at a time.")


def test_what_does_not_fit_ends_with_1_the_reason_and_what_would(model: str) -> None:
    result = plan(model, *ONE)
    assert result.exit_code == 1
    text = result.stdout
    assert "It does not fit." in text
    assert "Thinker holds" in text
    assert "  pass --colocate: room for 20 requests" in text
    assert "  take an FP8 checkpoint: room for 32 requests" in text


@pytest.mark.parametrize(
    ("gpus", "flags"),
    [(ONE, ()), (FOUR, ()), (FOUR, ("--gpu-thinker", "0,1,2,3")), (("--gpus", "2x48GB"), ("--colocate",))],
)
def test_every_change_that_is_flags_alone_does_fit_when_it_is_made(
    model: str, gpus: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    remedies = as_json(model, *gpus, *flags)["remedies"]
    changes = [remedy for remedy in remedies if remedy["change"].startswith("pass ")]
    assert changes
    for remedy in changes:
        made = as_json(model, *gpus, *shlex.split(remedy["change"].removeprefix("pass ")))
        assert (made["fits"], made["requests"]) == (True, remedy["requests"]), remedy


def test_the_smallest_single_gpu_is_named_and_would_do(model: str) -> None:
    [change] = [remedy["change"] for remedy in as_json(model, *FOUR)["remedies"] if "one GPU" in remedy["change"]]
    size = int(change.split(" with ")[1].split()[0])
    assert as_json(model, "--gpus", f"1x{size}GiB", "--colocate")["fits"]
    assert not as_json(model, "--gpus", f"1x{size - 8}GiB", "--colocate")["fits"]


def test_json_holds_bytes_that_add_up(model: str) -> None:
    made = as_json(model, *ONE, "--colocate")
    [device] = made["devices"]
    assert sum(holding["total"] for holding in device["holdings"]) == device["taken"]
    assert device["usable"] - device["taken"] == device["left"] >= 0
    thinker = next(holding for holding in device["holdings"] if holding["stage"] == "thinker")
    [cache] = [cache for cache in made["caches"] if cache["stage"] == "thinker"]
    assert thinker["cache"] == cache["tokens"] * (cache["token_bytes"] + cache["beside_bytes"])
    assert made["requests"] == cache["requests"] == cache["tokens"] // cache["request_tokens"]


def test_smaller_requests_find_more_room(model: str) -> None:
    small = as_json(model, *ONE, "--colocate", "--prompt-tokens", "512", "--answer-tokens", "128")
    assert small["requests"] > as_json(model, *ONE, "--colocate")["requests"]
    assert small["bounded_by"] == ["code_predictor", "code2wav"]


def test_memory_flags_are_those_of_serve(model: str) -> None:
    made = as_json(model, "--gpus", "2xH100-80GB", "--thinker-mem-fraction-static", "0.80")
    [thinker] = [holding for holding in made["devices"][0]["holdings"] if holding["stage"] == "thinker"]
    assert (thinker["weights"] + thinker["cache"]) / made["devices"][0]["memory"] == pytest.approx(0.80, abs=0.001)


@pytest.mark.parametrize("flags", [("--mem-fraction-static", "0.88"), ("--thinker-mem-fraction-static", "0.88")])
def test_the_guide_s_fractions_are_tight_but_not_refused(model: str, flags: tuple[str, ...]) -> None:
    result = plan(model, "--gpus", "2xH100-80GB", *flags)
    assert result.exit_code == 0
    assert "GPU 0 (H100-80GB) is tight" in result.stdout


def test_ranks_that_would_cut_an_fp8_block_are_refused(model: str, tmp_path: Path) -> None:
    config = json.loads((Path(model) / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = plan(str(tmp_path), *FOUR, "--gpu-thinker", "0,1,2,3")
    assert "moe_intermediate_size is 768: 192, for each, which is not a multiple of 128" in str(result.exception)
    assert "these numbers of ranks can: 1, 2." in str(result.exception)


def test_ranks_that_do_not_divide_the_model_are_refused(model: str) -> None:
    result = plan(model, "--gpus", "3x48GB", "--gpu-thinker", "0,1,2")
    assert "3 ranks cannot share the model evenly" in str(result.exception)


def test_without_gpus_it_plans_for_this_machine_s_memory(tiny_checkpoint: Path) -> None:
    result = plan(str(tiny_checkpoint), "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("RAM ")


def test_changes_are_tried_in_the_memory_that_other_programs_leave(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_pipeline.deployment.resolve.detect", lambda: parse("2xH100-80GB"))
    monkeypatch.setattr("omni_pipeline.gpus.memory_used", lambda own: {0: own[0].memory - 2**30, 1: 0})
    assert "--colocate" in [word for each in as_json(model, *ONE)["remedies"] for word in each["change"].split()]
    changes = [each["change"] for each in as_json(model)["remedies"]]
    assert [change for change in changes if "one GPU" not in change] == []
