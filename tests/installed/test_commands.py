"""The commands of the usage guide and the commands of the package work where there is no checkout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faked_starts.checkpoints import QUANTIZATION, write

from tests.conftest import ROOT
from tests.installed.conftest import Installation
from tests.omni_pipeline.config.test_layouts import LAYOUTS

# A program that runs many commands in one Python process, because the imports of each process take a second.
RUN_ALL = """
import json, sys
from typer.testing import CliRunner
from omni_pipeline.cli import app
results = [CliRunner().invoke(app, arguments) for arguments in json.load(sys.stdin)]
print(json.dumps([[result.exit_code, result.stdout, result.stderr, str(result.exception)] for result in results]))
"""


def test_everything_is_imported_from_the_wheel(installation: Installation) -> None:
    code = "import gateway, omni_pipeline, stages; print(gateway.__file__, omni_pipeline.__file__, stages.__file__)"
    for file in installation.python(code).split():
        assert Path(file).parent.parent == installation.packages
    assert str(ROOT) not in installation.python("import sys; print(sys.path)")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directories that imitate the 30B model's checkpoints, by kind of checkpoint. They even have weight files with the
    right headers.
    """
    return {kind: str(write(kind, tmp_path_factory.mktemp(kind))) for kind in QUANTIZATION}


def kind_for(flags: str) -> str:
    """The kind of checkpoint that a command needs."""
    return next((kind for kind in ("FP8", "INT4") if kind.lower() in flags.lower()), "BF16")


def test_every_command_of_the_usage_guide_can_work(installation: Installation, models: dict[str, str]) -> None:
    commands = [
        [
            "config",
            "check",
            "--gpus",
            gpus,
            *flags.split(),
            "--model-path",
            models[kind_for(flags)],
        ]
        for flags, gpus, *_ in LAYOUTS
    ]
    results = json.loads(installation.python(RUN_ALL, input=json.dumps(commands)))
    assert len(results) == len(LAYOUTS)
    for command, (status, output, errors, exception) in zip(commands, results, strict=True):
        assert status == 0, (command, exception)
        assert output.endswith("is complete and fits into memory.\n")
        given = command[command.index("--config") + 1] if "--config" in command else None
        if given is None:
            assert errors == ""
        else:
            file = installation.packages / "omni_pipeline" / "layouts" / Path(given).name
            assert errors.startswith(f"There is no {given} here: using the layout ")
            assert errors.endswith(f", {file}.\n")


def test_layouts_are_found_by_name(installation: Installation) -> None:
    listed = json.loads(installation.sgl_omni("config", "list", "--json").stdout)
    assert {Path(layout["path"]).name for layout in listed} == {path.name for path in (ROOT / "configs").iterdir()}
    assert {Path(layout["path"]).parent for layout in listed} == {installation.packages / "omni_pipeline" / "layouts"}
    flags = ["--model-path", "x", "--gpus", "1xH100-80GB", "--config", "colocated-h100"]
    shown = installation.sgl_omni("config", "show", *flags)
    assert shown.returncode == 0, shown.stderr
    [line] = [line for line in shown.stdout.splitlines() if line.startswith("colocate: true")]
    assert line.endswith(f"# {installation.packages}/omni_pipeline/layouts/qwen3_omni_colocated_h100.yaml")


def test_a_name_that_is_unknown_ends_with_one_clear_line(installation: Installation) -> None:
    done = installation.sgl_omni("serve", "--model-path", "x", "--config", "colocated-h10")
    assert done.returncode == 1
    assert done.stderr.endswith("and no layout of that name; did you mean colocated-h100?\n")
    assert len(done.stderr.splitlines()) == 1
