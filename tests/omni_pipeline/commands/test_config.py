"""The output of `sgl-omni config` is correct, and can be used as a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from omni_pipeline.cli import app
from omni_pipeline.config.layers import gather
from omni_pipeline.deployment.host_descriptions import parse_hosts
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
    assert result.stdout.endswith(
        "The configuration is valid; the checkpoint x is not a directory on this machine, so it was not checked.\n"
    )


def test_what_show_prints_of_replicas_comes_to_the_same(tmp_path: Path) -> None:
    flags = ["--replicas", "voice=2,vocoder=2", "--set", "groups.vocoder.gpus=[[1],[0]]"]
    shown = config("show", "--model-path", "x", "--gpus", "2x24GB", *flags)
    assert shown.exit_code == 0, shown.exception
    path = tmp_path / "shown.yaml"
    path.write_text(shown.stdout)
    first = gather(None, [], ["groups={voice: {replicas: 2}, vocoder: {replicas: 2, gpus: [[1],[0]]}}", "model_path=x"])
    assert resolve(gather(path).config, parse("2x24GB")) == resolve(first.config, parse("2x24GB"))


def test_check_tells_where_each_replica_runs() -> None:
    result = config("check", "--model-path", "x", "--gpus", "2xH100-80GB", "--replicas", "vocoder=2")
    assert result.exit_code == 0, result.exception
    lines = [line.split(None, 1) for line in result.stdout.splitlines()]
    assert ["code2wav@0", "GPU 1 (H100-80GB): code2wav"] in lines
    assert ["code2wav@1", "GPU 1 (H100-80GB): code2wav"] in lines


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
    assert origin == "computed; see `sgl-omni plan`"
    tokens, origin = shown["stages.thinker.options.max_total_tokens"]
    assert tokens > 50_000
    assert origin == "computed; see `sgl-omni plan`"
    assert shown["stages.talker_ar.memory"] == (0.3, "--set talker_ar.memory=0.3")


def test_check_tells_what_means_nothing() -> None:
    result = config("check", "--model-path", "x", "--device", "cpu", "--mem-fraction-static", "0.88")
    for stage in ("thinker", "talker_ar"):
        assert f"stages.{stage}: mem_fraction_static has no effect on the CPU" in result.stdout


@pytest.fixture
def nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU of 80 GB. Other programs use all of this memory except 1 GiB."""
    monkeypatch.setattr("omni_pipeline.deployment.resolve.detect", lambda: parse("1xH100-80GB"))
    monkeypatch.setattr("omni_pipeline.gpus.memory_used", lambda own: {gpu.index: gpu.memory - 2**30 for gpu in own})
    monkeypatch.setattr("omni_pipeline.kernels.toolchain.check", lambda workers: None)


def test_check_counts_the_memory_that_other_programs_use(nearly_full: None, tiny_checkpoint: Path) -> None:
    result = config("check", "--model-path", str(tiny_checkpoint))
    assert isinstance(result.exception, StartupError)
    assert "Not enough memory: the stages on GPU 0 (H100-80GB) need" in str(result.exception)


def test_check_takes_described_gpus_for_empty(nearly_full: None, tiny_checkpoint: Path) -> None:
    result = config("check", "--model-path", str(tiny_checkpoint), "--gpus", "1xH100-80GB", "--colocate")
    assert result.stdout.endswith("is complete and fits into memory.\n")


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


@pytest.fixture
def spread(tmp_path: Path) -> tuple[str, ...]:
    """Flags for a server whose vocoders run on two hosts."""
    path = tmp_path / "hosts.yaml"
    path.write_text(
        "model_path: x\n"
        "hosts: {b: {model_path: /there}}\n"
        "cluster: {listen: 10.0.0.1}\n"
        "groups: {vocoder: {replicas: 2, hosts: [main, b]}}\n"
    )
    return "--config", str(path)


def test_check_shows_the_host_of_each_worker(spread: tuple[str, ...]) -> None:
    result = config("check", *spread, "--hosts", "main=1xH100-80GB,b=2xL4-24GB")
    assert result.exit_code == 0, result.exception
    lines = [line.split(None, 1) for line in result.stdout.splitlines()]
    assert ["code2wav@0", "GPU 0 (H100-80GB): code2wav"] in lines
    assert ["code2wav@1", "GPU 0 of b (L4-24GB): code2wav"] in lines
    cpus = config("check", *spread, "--device", "cpu", "--hosts", "b=cpu").stdout
    assert "code2wav@1      CPU of b: code2wav\n" in cpus


def test_check_works_before_a_host_has_joined(spread: tuple[str, ...]) -> None:
    result = config("check", *spread, "--gpus", "1xH100-80GB")
    assert result.exit_code == 0, result.exception
    assert "code2wav@1      a device of b: code2wav\n" in result.stdout
    assert "The hardware of b is unknown until this host joins." in result.stdout


def test_check_looks_for_tools_only_for_workers_of_this_machine(
    spread: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("omni_pipeline.deployment.resolve.detect", lambda: ())
    monkeypatch.setattr("omni_pipeline.kernels.toolchain.check", lambda own: seen.extend(each.host for each in own))
    settings = ("--set", "groups.vocoder.hosts=[b, b]")
    assert config("check", *spread, *settings, "--hosts", "b=1xL4-24GB").exit_code == 0
    assert set(seen) == {""}


@pytest.mark.parametrize("hosts", ["main=1xH100-80GB,b=2xL4-24GB", "main=1xH100-80GB"])
def test_what_show_prints_of_hosts_comes_to_the_same(spread: tuple[str, ...], hosts: str, tmp_path: Path) -> None:
    shown = config("show", *spread, "--hosts", hosts)
    assert shown.exit_code == 0, shown.exception
    path = tmp_path / "shown.yaml"
    path.write_text(shown.stdout)
    facts = {name: each for name, each in parse_hosts(hosts).items() if name != "main"}
    first, again = (resolve(gather(file).config, parse("H100-80GB"), facts) for file in (Path(spread[1]), path))
    assert again == first
    assert ("# the GPUs of this stage's hosts are unknown until the hosts join" in shown.stdout) == ("b=" not in hosts)
