"""With the committed layouts and the guide's commands, each stage runs on the right device, and the 30B model fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from omni_pipeline.cli import app
from omni_pipeline.config.layers import gather
from omni_pipeline.config.schema import Config
from omni_pipeline.deployment.resolve import Deployment, resolve
from omni_pipeline.gpus import parse
from tests.omni_pipeline.conftest import ROOT

BF16 = "Qwen/Qwen3-Omni-30B-A3B-Instruct"
FP8 = "marksverdhei/Qwen3-Omni-30B-A3B-FP8"
INT4, AWQ = "cyankiwi/Qwen3-Omni-30B-A3B-Instruct-AWQ-4bit", "an/AWQ-checkpoint"

# The commands as the guide prints them, but with this repository's directory of layout files.
TEXT = f"--model-path {BF16} --text-only --port 8008"
FUSED = f"--model-path {BF16} --config configs/qwen3_omni_mmsu.yaml --text-only --port 8008"
SPEECH = f"--model-path {BF16} --port 8008"
MANUAL = f"--model-path {BF16} --gpu-thinker 0 --gpu-talker 1 --gpu-code-predictor 1 --gpu-code2wav 1 --port 8008"
GLOBAL = f"{SPEECH} --mem-fraction-static 0.88"
PER_STAGE = "--thinker-mem-fraction-static 0.88 --talker-mem-fraction-static 0.88"
PINNED = (GLOBAL, f"{SPEECH} {PER_STAGE}", f"{MANUAL} {PER_STAGE}")
NATIVE = "--config configs/qwen3_omni_fp8_colocated.yaml --colocate --model-name qwen3-omni --port 8008"

FOUR_BITS = "--config configs/qwen3_omni_int4_colocated.yaml --port 8008"


def h(size: str) -> str:
    return f"--model-path {BF16} --config configs/qwen3_omni_colocated_{size}.yaml --colocate --port 8008"


ENGINES = {"thinker": [0], "talker_ar": [1], "code_predictor": [1], "code2wav": [1], "image_encoder": [0]}
ONE = {"thinker": [0], "talker_ar": [0], "code2wav": [0], "audio_encoder": [0]}

LAYOUTS: list[tuple[str, str, int, dict[str, list[int]]]] = [
    (TEXT, "1xH100-80GB", 6, {"thinker": [0], "image_encoder": [0], "audio_encoder": [0]}),
    (FUSED, "1xH100-80GB", 1, {"thinker": [0], "image_encoder": [0], "decode": []}),
    (SPEECH, "2xH100-80GB", 9, ENGINES),
    (SPEECH, "1xH200-141GB", 9, ONE),
    (MANUAL, "2xH100-80GB", 9, ENGINES),
    *((flags, "2xH100-80GB", 9, ENGINES) for flags in PINNED),
    (h("h20"), "1xH20-96GB", 4, ONE),
    (h("h100"), "1xH100-80GB", 4, ONE),
    (h("h200"), "1xH200-141GB", 4, ONE),
    (NATIVE, "1xH100-80GB", 4, ONE),
    (NATIVE, "1xH20-96GB", 4, ONE),
    (FOUR_BITS, "1x48GB", 4, ONE),
    (f"{FOUR_BITS} --text-only", "1xRTX4090-24GB", 4, {"thinker": [0], "image_encoder": [0], "audio_encoder": [0]}),
    (f"{FOUR_BITS} --model-path {AWQ} --text-only", "1xRTX3090-24GB", 4, {"thinker": [0], "image_encoder": [0]}),
    (f"--model-path {BF16} --config configs/qwen3_omni_2gpu.yaml", "2xH100-80GB", 9, ENGINES),
    (
        f"--model-path {BF16} --config configs/qwen3_omni_4gpu.yaml",
        "4x48GB",
        9,
        {"thinker": [0, 1], "talker_ar": [2], "code2wav": [3]},
    ),
    (f"--model-path {FP8} --config configs/qwen3_omni_4gpu.yaml", "4x24GB", 9, {"thinker": [0, 1]}),
]


@pytest.fixture
def sizes(data: Path, tmp_path: Path) -> dict[str, str]:
    """A directory for each model. It has only the model's ``config.json``, because a plan needs no other file."""
    config = json.loads((data / "qwen3_omni_30b" / "config.json").read_text())
    published = json.loads((data / "quantization_configs.json").read_text())
    found = {BF16: str(data / "qwen3_omni_30b")}
    for model, name in {FP8: "fp8-block", INT4: "int4-packed", AWQ: "int4-awq"}.items():
        found[model] = str(tmp_path / name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"quantization_config": published[name]}))
    return found


@pytest.mark.parametrize(("flags", "gpus", "workers", "expected"), LAYOUTS, ids=lambda value: str(value)[:90])
def test_command_comes_to_the_documented_layout_and_fits(
    flags: str,
    gpus: str,
    workers: int,
    expected: dict[str, list[int]],
    sizes: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    values = values_of("config", "show", "--json", "--gpus", gpus, *flags.split())
    assert {stage: values[f"stages.{stage}.gpus"] for stage in expected} == expected
    assert len({value for path, value in values.items() if path.endswith(".worker")}) == workers
    assert values["server.port"] == (8008 if "--port" in flags else 8000)
    model = sizes[values["model_path"]]
    result = CliRunner().invoke(app, ["plan", "--json", "--gpus", gpus, *flags.split(), "--model-path", model])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["fits"]


@pytest.mark.parametrize("flags", PINNED)
def test_pinned_fractions_are_those_of_both_engines(flags: str) -> None:
    values = values_of("config", "show", "--json", "--gpus", "2xH100-80GB", *flags.split())
    assert {stage: values[f"stages.{stage}.gpus"] for stage in ENGINES} == ENGINES
    for stage in ("thinker", "talker_ar"):
        assert values[f"stages.{stage}.options.mem_fraction_static"] == 0.88


def values_of(*arguments: str) -> dict[str, Any]:
    """The values that `config show --json` prints, by path."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.exception
    return {line["path"]: line["value"] for line in json.loads(result.stdout)}


def test_path_of_the_fp8_checkpoint_is_in_its_file_and_a_flag_wins_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = ["config", "show", "--json", "--gpus", "1xH100-80GB", *NATIVE.split()]
    assert values_of(*shown)["model_path"] == FP8
    assert values_of(*shown, "--model-path", "other")["model_path"] == "other"


@pytest.mark.parametrize("size", ["h20", "h100", "h200", "fp8"])
def test_budgets_of_a_card_leave_some_of_it_for_the_driver(size: str) -> None:
    name = "fp8_colocated" if size == "fp8" else f"colocated_{size}"
    config = gather(ROOT / "configs" / f"qwen3_omni_{name}.yaml").config
    assert 0.9 < sum(float(stage.memory or 0) for stage in config.stages.values()) < 0.971


CPU = {"text": 6, "mmsu": 1, "speech": 9, "colocated": 4, "cpu_demo": 9}


@pytest.mark.parametrize("name", CPU)
def test_layout_that_names_no_gpu_is_also_one_for_the_cpu(name: str) -> None:
    assert len(on(name, "").workers) == CPU[name]


def test_default_is_what_the_files_spell_out() -> None:
    assert on("speech", "").workers == resolve(Config(model_path="x", device="cpu")).workers
    assert on("text", "").workers == resolve(Config(model_path="x", device="cpu", text_only=True)).workers


def on(name: str, gpus: str) -> Deployment:
    """The deployment of a committed layout on these GPUs."""
    config = gather(ROOT / "configs" / f"qwen3_omni_{name}.yaml", assignments=["model_path=x"]).config
    return resolve(config, parse(gpus) if gpus else ())
