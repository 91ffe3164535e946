"""The container recipe agrees with the sources, with the server's flags and with the README."""

from __future__ import annotations

import json
import shlex

import pytest
from container.recipe import BuildStage, read
from typer.testing import CliRunner

from omni_pipeline.cli import app
from tests.conftest import ROOT
from tests.installed.conftest import SOURCES


@pytest.fixture
def image() -> BuildStage:
    return read()[-1]


def test_it_makes_the_wheel_of_all_its_sources() -> None:
    wheel = read()[0]
    copied = [source for copy in wheel.all("COPY") for source in copy.words[:-1]]
    assert sorted(copied) == sorted(SOURCES)


def test_what_it_copies_is_there(image: BuildStage) -> None:
    sources = [source for copy in image.all("COPY") for source in copy.words[:-1] if "--from=wheel" not in copy.words]
    assert sources
    assert all((ROOT / source).exists() for source in sources)


def test_what_is_made_at_run_time_is_in_its_volume_and_no_client_may_read_it(image: BuildStage) -> None:
    volume = image.last("VOLUME").text
    for name in ("HOME", "TORCHINDUCTOR_CACHE_DIR"):
        assert f"{image.environment[name]}/".startswith(f"{volume}/")
    media = image.last("WORKDIR").text
    assert not f"{volume}/".startswith(f"{media}/")
    assert not f"{media}/".startswith(f"{volume}/")


def test_it_runs_as_a_user_without_rights(image: BuildStage) -> None:
    user = image.last("USER").text
    [made] = [run for run in image.all("RUN") if run.text.startswith("useradd ")]
    assert user == made.words[-1] != "root"
    verbs = [instruction.verb for instruction in image.instructions]
    assert "RUN" not in verbs[verbs.index("USER") :]


def test_it_listens_to_itself_alone_until_it_is_told_otherwise(image: BuildStage) -> None:
    assert image.last("ENTRYPOINT").command == ["sgl-omni"]
    assert image.last("CMD").command == ["serve"]
    variables = {name: value for name, value in image.environment.items() if name.startswith("SGL_OMNI_")}
    shown = CliRunner().invoke(app, ["config", "show", "--json", "--model-path", "x"], env=variables)
    values = {line["path"]: line["value"] for line in json.loads(shown.stdout)}
    assert values["server.host"] == "127.0.0.1"
    assert str(values["server.port"]) == image.last("EXPOSE").text


def test_command_of_the_readme_fits_it(image: BuildStage) -> None:
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    [build] = [shlex.split(line) for line in text.splitlines() if line.startswith("docker build")]
    [run] = [shlex.split(line) for line in text.splitlines() if line.startswith("docker run")]
    assert (ROOT / build[build.index("--file") + 1]).is_file()
    tag = build[build.index("--tag") + 1]
    options, arguments = run[2 : run.index(tag)], run[run.index(tag) + 1 :]
    assert any(option.endswith(f":{image.last('VOLUME').text}") for option in options)
    assert options[options.index("--publish") + 1].endswith(f":{image.last('EXPOSE').text}")
    assert arguments[0] == "serve"
    done = CliRunner().invoke(app, ["config", "show", "--json", "--gpus", "1xH200-141GB", *arguments[1:]])
    values = {line["path"]: line["value"] for line in json.loads(done.stdout)}
    assert values["server.host"] == "0.0.0.0"
    patience = float(options[options.index("--stop-timeout") + 1])
    assert patience > values["server.drain_seconds"]
