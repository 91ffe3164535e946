"""The output of `sgl-omni config` is correct, and can be used as a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from omni_pipeline.cli import app
from omni_pipeline.config.layers import gather
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import parse


def config(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["config", *arguments])


def test_what_show_prints_is_a_file_that_comes_to_the_same(tmp_path: Path) -> None:
    flags = ["--gpu-thinker", "0,1", "--set", "thinker.engine.page_size=16", "--set", "talker_ar.memory=12GiB"]
    shown = config("show", "--model-path", "x", "--gpus", "4x24GB", *flags)
    assert shown.exit_code == 0, shown.exception
    path = tmp_path / "shown.yaml"
    path.write_text(shown.stdout)
    again = gather(path)
    first = gather(None, [], [*(f"stages.{text}" for text in ("thinker.gpus=[0, 1]",)), *flags[3::2], "model_path=x"])
    assert resolve(again.config, parse("4x24GB")) == resolve(first.config, parse("4x24GB"))


def test_show_says_where_a_value_came_from_beside_it() -> None:
    lines = config("show", "--model-path", "x", "--device", "cpu", "--port", "8008").stdout.splitlines()
    assert any(line.split("#")[0].strip() == "port: 8008" and line.endswith("# --port") for line in lines)
    assert "  host: 127.0.0.1" in lines


def test_check_tells_who_runs_where() -> None:
    result = config("check", "--model-path", "x", "--gpus", "2xH100-80GB")
    assert result.exit_code == 0
    lines = [line.split(None, 1) for line in result.stdout.splitlines()]
    assert ["thinker", "GPU 0 (H100-80GB): thinker"] in lines
    assert ["talker_ar", "GPU 1 (H100-80GB): talker_ar"] in lines
    assert ["decode", "CPU: decode"] in lines
    assert result.stdout.endswith("The configuration is valid; the checkpoint x is not here, and not checked.\n")


def test_check_looks_into_a_checkpoint_that_is_here(tmp_path: Path) -> None:
    result = config("check", "--model-path", str(tmp_path), "--device", "cpu")
    assert isinstance(result.exception, StartupError)
    assert "config.json is missing" in str(result.exception)


def test_schema_is_json() -> None:
    assert json.loads(config("schema").stdout)["$ref"] == "#/$defs/Configuration"


def test_show_tells_how_memory_will_be_divided(data: Path) -> None:
    model = str(data / "qwen3_omni_30b")
    flags = ["--gpus", "2xH100-80GB", "--set", "talker_ar.memory=0.3"]
    lines = json.loads(config("show", "--json", "--model-path", model, *flags).stdout)
    shown = {line["path"]: (line["value"], line["origin"]) for line in lines}
    value, origin = shown["stages.thinker.memory"]
    assert 60 < float(value.removesuffix("GiB")) < 78
    assert origin == "computed, see sgl-omni plan"
    tokens, origin = shown["stages.thinker.options.max_total_tokens"]
    assert tokens > 50_000
    assert origin == "computed, see sgl-omni plan"
    assert shown["stages.talker_ar.memory"] == (0.3, "--set talker_ar.memory=0.3")


def test_check_tells_what_means_nothing() -> None:
    result = config("check", "--model-path", "x", "--device", "cpu", "--mem-fraction-static", "0.88")
    for stage in ("thinker", "talker_ar"):
        assert f"stages.{stage}: mem_fraction_static has no effect on the CPU" in result.stdout


@pytest.fixture
def nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU of 80 GB, of which other programs use all but 1 GiB."""
    monkeypatch.setattr("omni_pipeline.deployment.resolve.detect", lambda: parse("1xH100-80GB"))
    monkeypatch.setattr("omni_pipeline.gpus.memory_used", lambda own: {gpu.index: gpu.memory - 2**30 for gpu in own})
    monkeypatch.setattr("omni_pipeline.kernels.toolchain.check", lambda workers: None)


def test_check_counts_the_memory_that_other_programs_use(nearly_full: None, tiny_checkpoint: Path) -> None:
    result = config("check", "--model-path", str(tiny_checkpoint))
    assert isinstance(result.exception, StartupError)
    assert "Not enough memory: GPU 0 (H100-80GB) would have to hold" in str(result.exception)


def test_check_takes_described_gpus_for_empty(nearly_full: None, tiny_checkpoint: Path) -> None:
    result = config("check", "--model-path", str(tiny_checkpoint), "--gpus", "1xH100-80GB", "--colocate")
    assert result.stdout.endswith("is complete, and it fits.\n")


def test_show_divides_the_memory_that_other_programs_leave(
    monkeypatch: pytest.MonkeyPatch, nearly_full: None, data: Path
) -> None:
    monkeypatch.setattr("omni_pipeline.gpus.memory_used", lambda own: {gpu.index: 4 * 2**30 for gpu in own})

    def tokens(*gpus: str) -> int:
        flags = ["--text-only", "--colocate", "--model-path", str(data / "qwen3_omni_30b"), *gpus]
        lines = json.loads(config("show", "--json", *flags).stdout)
        [value] = [line["value"] for line in lines if line["path"] == "stages.thinker.options.max_total_tokens"]
        return int(value)

    assert 0 < tokens() < tokens("--gpus", "1xH100-80GB")
