"""The command line works as a user expects it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from omni_pipeline.commands.options import all_flags
from omni_pipeline.config.schema import Server
from omni_pipeline.service import listen
from tests.omni_pipeline.conftest import ROOT


def sgl_omni(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "omni_pipeline.cli", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("option", [*(flag.name for flag in all_flags()), "--config", "--set", "Examples", "SGL_OMNI_"])
def test_help_tells_of_every_option(option: str, help_text: str) -> None:
    assert option in help_text


@pytest.fixture(scope="module")
def help_text() -> str:
    result = sgl_omni("serve", "--help")
    assert result.returncode == 0
    return result.stdout


def test_version_names_the_packages_that_decide_results() -> None:
    lines = sgl_omni("version").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["omni-pipeline", "sglang", "torch", "transformers"]


def test_main_process_imports_no_torch() -> None:
    code = (
        "import sys, omni_pipeline.cli, gateway, stages.topology; print({'torch', 'transformers'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No model is named: pass --model-path"),
        (["--model-path", "/no/such/place"], "There is no directory /no/such/place: check --model-path."),
        (["--model-path", "configs"], "config.json is missing"),
        (["--config", "none.yaml"], "--config none.yaml: there is no such file, and no layout of that name"),
        (["--model-path", "x", "--config", "colocated-h10"], "did you mean colocated-h100?"),
        (["--model-path", "configs", "--device", "cuda"], "no GPU is visible: use --device cpu"),
    ],
)
def test_mistake_ends_the_start_with_one_clear_line(
    arguments: list[str], message: str, run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = sgl_omni("serve", "--port", "0", *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_taken_port_is_told_before_anything_is_loaded(run_root: Path) -> None:
    with listen(Server(port=0)) as taken:
        port = str(taken.getsockname()[1])
        result = sgl_omni("serve", "--model-path", "configs", "--port", port)
    assert result.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["--port", "70000"], ["--device", "tpu"], ["--log-level", "loud"], ["--modle-path", "x"]], ids=str
)
def test_impossible_flag_is_a_usage_error(arguments: list[str]) -> None:
    assert sgl_omni("serve", *arguments).returncode == 2


def test_script_with_the_guides_name_takes_the_same_flags(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = ROOT / "scripts" / "run_qwen3_omni_speech_server.py"
    flags = ["--gpu-thinker", "0", "--gpu-talker", "1", "--gpu-code-predictor", "1", "--gpu-code2wav", "1"]
    flags += ["--thinker-mem-fraction-static", "0.88", "--talker-mem-fraction-static", "0.88", "--port", "8008"]
    result = subprocess.run(
        [sys.executable, script, "--model-path", "Qwen/Qwen3-Omni-30B-A3B-Instruct", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == (
        "error: stages.thinker.gpus: thinker cannot use a GPU: it computes on the CPU, because no GPU is visible.\n"
    )
