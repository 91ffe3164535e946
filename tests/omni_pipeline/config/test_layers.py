"""If several layers of settings set the same value, the right layer wins. An error names the layer with the wrong
setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omni_pipeline.config.layers import SettingsLayer, gather
from omni_pipeline.errors import StartupError
from tests.omni_pipeline.echo_stages import ECHO_PATH


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("x.yaml").write_text(text)
        return Path("x.yaml")

    return write


def test_later_place_wins_and_is_remembered(write: Any) -> None:
    path = write("server: {host: file, port: 1}\nstages: {thinker: {threads: 2, gpus: [0]}}")
    layers = [SettingsLayer("SGL_OMNI_PORT", {"server": {"port": 2}}), SettingsLayer("--port", {"server": {"port": 3}})]
    settings = gather(path, layers, ["thinker.threads=4"])
    assert (settings.config.server.host, settings.config.server.port) == ("file", 3)
    assert settings.config.stages["thinker"].threads == 4
    assert settings.origins == {
        "server.host": "x.yaml",
        "server.port": "--port",
        "stages.thinker.threads": "--set thinker.threads=4",
        "stages.thinker.gpus": "x.yaml",
    }


def test_empty_mapping_changes_nothing(write: Any) -> None:
    path = write("stages: {thinker: {options: {engine: {page_size: 1}}}}")
    settings = gather(path, assignments=["thinker.engine={}"])
    assert settings.config.stages["thinker"].options == {"engine": {"page_size": 1}}
    assert settings.origins == {"stages.thinker.options.engine.page_size": "x.yaml"}


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("thinker.engine.chunked_prefill_size=2048", "stages.thinker.options.engine.chunked_prefill_size", 2048),
        ("thinker.engine.attention_backend=fa3", "stages.thinker.options.engine.attention_backend", "fa3"),
        ("thinker.options.engine.page_size=16", "stages.thinker.options.engine.page_size", 16),
        ("stages.thinker.options.dtype=bfloat16", "stages.thinker.options.dtype", "bfloat16"),
        ("stages.talker_ar.dtype=null", "stages.talker_ar.options.dtype", None),
        ("code2wav.chunk_frames=[2, 4]", "stages.code2wav.options.chunk_frames", [2, 4]),
        ("thinker.memory=12GiB", "stages.thinker.memory", "12GiB"),
        ("thinker.gpus=[0, 1]", "stages.thinker.gpus", [0, 1]),
        ("thinker.environment.NCCL_DEBUG=INFO", "stages.thinker.environment.NCCL_DEBUG", "INFO"),
        ("thinker.environment={A: b=c}", "stages.thinker.environment.A", "b=c"),
        ("server.limits.requests=8", "server.limits.requests", 8),
        ("server.model_name='1'", "server.model_name", "1"),
        ("text_only=true", "text_only", True),
    ],
)
def test_assignment_reaches_its_setting(assignment: str, path: str, value: Any) -> None:
    settings = gather(None, assignments=[assignment])
    found: Any = settings.config
    for name in path.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value
    assert settings.origins == {path: f"--set {assignment}"}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("thinker", "write a setting, an equals sign and a value"),
        ("=1", "write a setting, an equals sign and a value"),
        ("thinkr.threads=1", "there is no stage or setting thinkr; did you mean thinker?"),
        ("sever.port=1", "there is no stage or setting sever; did you mean server?"),
        ("stages.thinkr.threads=1", "there is no stage thinkr; did you mean thinker?"),
        ("thinker.thread=1", "the stage thinker has no setting 'thread'; did you mean threads?"),
        ("thinker=1", "the stage thinker has no setting ''"),
        (
            "thinker.max_totl_tokens=1",
            "the stage thinker has no setting 'max_totl_tokens'; did you mean max_total_tokens?",
        ),
        ("decode.engine.x=1", "the stage decode has no setting 'engine'; known here: worker, "),
        ("server.prt=1", "server.prt: there is no such setting; did you mean port?"),
        ("thinker.threads=two", "stages.thinker.threads: expected `int | null`, got `str`."),
        ("thinker.threads={", "'{' is not a YAML value."),
        ("thinker.memory=12", "expected `float` < 1.0"),
        ("thinker.memory=12Gib", "expected `str` matching regex"),
        ("thinker.max_running_requests=0", "stages.thinker.options.max_running_requests: expected `int` >= 1."),
        ("thinker.mem_fraction_static=1.5", "stages.thinker.options.mem_fraction_static: expected `float` < 1.0."),
    ],
)
def test_assignment_that_means_nothing_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(StartupError) as caught:
        gather(None, assignments=[assignment])
    assert str(caught.value).startswith(f"--set {assignment}: ")
    assert message in str(caught.value)


def test_mistake_is_laid_at_the_door_of_the_place_that_made_it(write: Any) -> None:
    good = write("server: {port: 80}")
    with pytest.raises(StartupError, match=r"^--port: server\.port: expected"):
        gather(good, [SettingsLayer("--port", {"server": {"port": -1}})])
    with pytest.raises(StartupError, match=r"^x\.yaml: stages\.thinker\.options\.dtpe: there is no such setting; did"):
        gather(write("stages: {thinker: {options: {dtpe: x}}}"))
    with pytest.raises(StartupError, match=r"^x\.yaml: stages\.thinkr: there is no such stage; did you mean thinker"):
        gather(write("stages: {thinkr: {}}"))


def test_stages_are_those_of_the_graph_that_the_file_names(write: Any) -> None:
    settings = gather(write(f"graph: {ECHO_PATH}"), assignments=["shout.refuse=never"])
    assert settings.config.stages["shout"].options == {"refuse": "never"}


def test_text_only_server_refuses_flags_of_stages_it_leaves_out_but_not_a_file(write: Any) -> None:
    path = write("text_only: true\nstages: {talker_ar: {threads: 2}}")
    both = SettingsLayer("--both", {"stages": {"thinker": {"threads": 2}, "talker_ar": {"threads": 2}}})
    assert gather(path, [both]).config.text_only
    with pytest.raises(StartupError, match=r"^--gpu-talker: a text-only server does not run talker_ar"):
        gather(path, [SettingsLayer("--gpu-talker", {"stages": {"talker_ar": {"gpus": [1]}}})])
    with pytest.raises(StartupError, match=r"^--set talker_ar\.threads=1: a text-only server does not run talker_ar"):
        gather(path, assignments=["talker_ar.threads=1"])
