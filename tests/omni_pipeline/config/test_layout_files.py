"""``--config`` selects an existing file by its path, or a layout of the package by any of the layout's names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from omni_pipeline.cli import app
from omni_pipeline.config.layout_files import complete, find, layouts
from omni_pipeline.errors import StartupError
from tests.omni_pipeline.conftest import ROOT

FUSED = ROOT / "configs" / "qwen3_omni_mmsu.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the test in a directory outside of any checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_committed_file_is_a_layout_with_a_purpose() -> None:
    assert {layout.path for layout in layouts()} == {*(ROOT / "configs").glob("*.yaml")}
    assert len({layout.name for layout in layouts()}) == len(layouts())
    for layout in layouts():
        assert 20 < len(layout.purpose) < 200
        assert layout.purpose.endswith((".", ")."))
        assert ". " not in layout.purpose


@pytest.mark.parametrize("given", ["mmsu", "qwen3_omni_mmsu.yaml", str(FUSED)])
def test_name_file_name_and_path_mean_the_same(given: str) -> None:
    found = find(given)
    assert (found.path, found.note) == (FUSED, None)


def test_underscores_of_a_file_are_hyphens_of_its_name() -> None:
    assert find("colocated-h100").path == ROOT / "configs" / "qwen3_omni_colocated_h100.yaml"


@pytest.mark.parametrize("given", ["mmsu", "qwen3_omni_mmsu.yaml", "configs/qwen3_omni_mmsu.yaml"])
def test_file_that_is_here_wins_over_a_layout(elsewhere: Path, given: str) -> None:
    (elsewhere / given).parent.mkdir(exist_ok=True)
    (elsewhere / given).write_text("text_only: true")
    assert find(given).path == Path(given)


def test_directory_with_the_name_of_a_layout_hides_nothing(elsewhere: Path) -> None:
    (elsewhere / "mmsu").mkdir()
    assert find("mmsu").path == FUSED


def test_path_of_a_pipe_is_read() -> None:
    """With ``--config <(…)``, the shell passes the path of a pipe."""
    reading, writing = os.pipe()
    assert find(f"/dev/fd/{reading}").path == Path(f"/dev/fd/{reading}")
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("directory", ["configs", "./configs", "examples/configs"])
def test_path_of_a_guide_means_the_layout_and_says_so(directory: str) -> None:
    found = find(f"{directory}/qwen3_omni_mmsu.yaml")
    assert found.path == FUSED
    assert found.note == f"There is no {directory}/qwen3_omni_mmsu.yaml here: using the layout mmsu, {FUSED}."


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("colocated-h10", "no such file, and no layout of that name; did you mean colocated-h100?"),
        ("colocated_h100", "did you mean colocated-h100?"),
        ("configs/qwen3_omni_colocated_h21.yaml", "did you mean colocated-h20?"),
        ("something", "known here: 2gpu, 4gpu, colocated, "),
        ("/etc/omni/qwen3_omni_mmsu.yaml", "no such file, but there is a layout of that name: pass --config mmsu."),
        (".", "it is a directory, and no layout of that name"),
    ],
)
def test_name_of_nothing_is_refused_with_what_was_meant(given: str, message: str) -> None:
    with pytest.raises(StartupError) as caught:
        find(given)
    assert str(caught.value).startswith(f"--config {given}: ")
    assert message in str(caught.value)


def test_list_says_name_purpose_and_file() -> None:
    output = CliRunner().invoke(app, ["config", "list"]).output
    names = [line.split()[0] for line in output.splitlines() if not line.startswith(" ")]
    assert names == [layout.name for layout in layouts()]
    assert "on one H100 with 80 GB" in output
    assert f"{ROOT}/configs/qwen3_omni_colocated_h100.yaml" in output
    listed = json.loads(CliRunner().invoke(app, ["config", "list", "--json"]).output)
    assert listed[0] == {
        "name": "2gpu",
        "path": f"{ROOT}/configs/qwen3_omni_2gpu.yaml",
        "purpose": layouts()[0].purpose,
    }


@pytest.mark.parametrize("given", ["mmsu", "configs/qwen3_omni_mmsu.yaml"])
def test_show_names_the_file_that_was_read(given: str) -> None:
    result = CliRunner().invoke(app, ["config", "show", "--model-path", "x", "--device", "cpu", "--config", given])
    assert f"text_only: true   # {FUSED}" in result.stdout
    assert ("using the layout mmsu" in result.stderr) == (given != "mmsu")
    assert "using the layout" not in result.stdout


def test_names_and_files_complete_a_command(elsewhere: Path) -> None:
    (elsewhere / "colours.txt").touch()
    (elsewhere / "colleagues.yaml").touch()
    (elsewhere / "collected").mkdir()
    names = ["colocated", "colocated-h100", "colocated-h20", "colocated-h200"]
    assert list(complete("col")) == [*names, "colleagues.yaml", "collected/"]
    asked = {"_SGL_OMNI_COMPLETE": "complete_bash", "COMP_WORDS": "sgl-omni serve --config fp", "COMP_CWORD": "3"}
    command = [Path(sys.executable).with_name("sgl-omni")]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["fp8-colocated"]
