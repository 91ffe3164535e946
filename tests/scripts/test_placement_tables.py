"""The placement guide agrees with the plan."""

from __future__ import annotations

import json
import re
from pathlib import Path

import placement_tables
import pytest
from typer.testing import CliRunner

from omni_pipeline.cli import app


def test_the_tables_of_the_guide_are_those_that_the_plan_makes() -> None:
    document = placement_tables.DOCUMENT.read_text(encoding="utf-8")
    made = placement_tables.sections()
    assert placement_tables.filled(document, made) == document, "run python scripts/placement_tables.py --write"


def test_the_guide_has_every_table() -> None:
    document = placement_tables.DOCUMENT.read_text(encoding="utf-8")
    assert re.findall(r"<!-- plan: (\S+) -->", document) == list(placement_tables.SECTIONS)


@pytest.mark.parametrize("gpus", placement_tables.SECTIONS)
def test_flags_of_a_row_say_what_its_configuration_does(gpus: str) -> None:
    from omni_pipeline.commands.options import all_flags

    names = {path: flag.name for flag in all_flags() for path in flag.settings}
    for layout in placement_tables.SECTIONS[gpus]:
        said = layout.flags if layout.flags.startswith("--") else ""
        wanted = {
            f"{names[f'stages.{name}.gpus']} {','.join(map(str, stage.gpus))}"
            for name, stage in layout.config.stages.items()
        }
        wanted |= {"--colocate"} if layout.config.colocate else set()
        wanted |= {"--text-only"} if layout.config.text_only else set()
        assert set(re.findall(r"--[\w-]+(?: [\d,]+)?", said)) == wanted


COMMANDS = [
    line.partition("  #")[0].strip()
    for line in placement_tables.DOCUMENT.read_text(encoding="utf-8").splitlines()
    if line.startswith("sgl-omni plan ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_guide_plan_the_30b_model(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = placement_tables.DOCUMENT.read_text(encoding="utf-8")
    hosts = guide.partition("## Several hosts")[2].partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "hosts.yaml").write_text(hosts)
    monkeypatch.chdir(tmp_path)
    words = command.split()[1:]
    words[words.index("--model-path") + 1] = str(placement_tables.SIZES)
    # without these flags, the command plans for the GPUs of the reader's machine
    if not {"--gpus", "--hosts"} & set(words):
        words += ["--gpus", "1xH200-141GB"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code in (0, 1), result.output
    assert ('"fits": ' if "--json" in words else "It ") in result.stdout


def test_the_guide_has_commands() -> None:
    assert len(COMMANDS) == 5


def test_rounded_fractions_of_the_h100_cost_the_requests_that_the_guide_says() -> None:
    path = placement_tables.ROOT / "configs" / "qwen3_omni_colocated_h100.yaml"
    found = []
    for flags in (["--config", str(path)], ["--colocate"]):
        words = ["plan", "--json", "--model-path", str(placement_tables.SIZES), "--gpus", "1xH100-80GB", *flags]
        found.append(json.loads(CliRunner().invoke(app, words).stdout)["requests"])
    text = " ".join(placement_tables.DOCUMENT.read_text(encoding="utf-8").split())
    assert f"With the file for the H100, there is room for {found[0]} requests." in text
    assert f"With the computed budgets, there is room for {found[1]} requests." in text
