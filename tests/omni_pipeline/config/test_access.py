"""A mistake in the configuration causes an error, and never silently gives unintended access to the server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from omni_pipeline.cli import app
from omni_pipeline.config.schema import Config, MediaPolicy, Server
from omni_pipeline.deployment.resolve import resolve

Run = Callable[..., Result]
SECRET = "the-secret-key"


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `sgl-omni config show --json` with a configuration file and with environment variables."""
    monkeypatch.chdir(tmp_path)

    def show(*flags: str, file: str = "", **environment: str) -> Result:
        if file:
            (tmp_path / "x.yaml").write_text(file)
            flags = ("--config", "x.yaml", *flags)
        command = ["config", "show", "--json", "--device", "cpu", "--model-path", "m", *flags]
        return CliRunner().invoke(app, command, env=environment)

    return show


def value(result: Result, path: str) -> object:
    assert result.exit_code == 0, result.exception
    return next(line["value"] for line in json.loads(result.stdout) if line["path"] == path)


@pytest.mark.parametrize("key", ["", " ", "\t", "\n", " key", "key ", "key\n", "k\x00y", "\u200b"])
def test_a_key_that_cannot_be_sent_is_refused_wherever_it_is_given(show: Run, key: str) -> None:
    written = json.dumps([key])
    for result in (
        show("--api-key", key),
        show("--api-key", "good", "--api-key", key),
        show("--set", f"server.api_keys={written}"),
        show(file=f"server: {{api_keys: {written}}}"),
        show("--api-key", "good", file=f"server: {{api_keys: {written}}}"),
    ):
        assert result.exit_code != 0
        assert "server.api_keys: an API key" in str(result.exception)


@pytest.mark.parametrize("name", ["API_KEY", "ALLOWED_MEDIA_DOMAIN", "ALLOWED_HOST"])
@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_variable_that_should_protect_is_refused(show: Run, name: str, text: str) -> None:
    result = show(**{f"SGL_OMNI_{name}": text})
    assert f"SGL_OMNI_{name} is set, but it is empty" in str(result.exception)


def test_a_flag_wins_over_an_empty_variable(show: Run) -> None:
    assert value(show("--api-key", "x", SGL_OMNI_API_KEY=""), "server.api_keys") == ["(hidden)"]


def test_an_empty_variable_forbids_local_files_as_the_flag_does(show: Run) -> None:
    path = "server.media.local_path"
    assert value(show("--allowed-local-media-path", ""), path) == ""
    assert value(show(SGL_OMNI_ALLOWED_LOCAL_MEDIA_PATH=""), path) == ""
    assert value(show("--allowed-local-media-path", "/m", SGL_OMNI_ALLOWED_LOCAL_MEDIA_PATH=""), path) == "/m"


@pytest.mark.parametrize("name", ["API_KEYS", "APIKEY", "API-KEY", "ALLOWED_HOSTS", "MAX_REQUEST"])
def test_a_variable_that_resembles_a_flags_is_refused(show: Run, name: str) -> None:
    result = show(**{f"SGL_OMNI_{name}": SECRET})
    start = f"SGL_OMNI_{name}: no setting is read from this environment variable; did you mean SGL"
    assert str(result.exception).startswith(start)


def test_other_variables_with_the_prefix_are_noted_except_those_of_kubernetes(show: Run) -> None:
    kubernetes = {
        "SGL_OMNI_PORT": "tcp://10.0.0.1:80", "SGL_OMNI_SERVICE_HOST": "10.0.0.1", "SGL_OMNI_SERVICE_PORT_HTTP": "80",
        "SGL_OMNI_PORT_80_TCP_ADDR": "10.0.0.1", "SGL_OMNI_METRICS_PORT_80_TCP": "x",
        "SGL_OMNI_METRICS_SERVICE_HOST": "x",
    }  # fmt: skip
    result = show(SGL_OMNI_BUILD_DATE="today", **kubernetes)
    assert result.exit_code == 0, result.exception
    assert result.stderr.splitlines() == [
        "the environment variable SGL_OMNI_BUILD_DATE has no effect, because no flag uses it"
    ]


@pytest.mark.parametrize("root", ["/", "//", "/./", "/tmp/..", "/proc/self/root"])
def test_every_file_of_the_machine_is_no_directory_of_media(show: Run, root: str) -> None:
    for result in (show("--allowed-local-media-path", root), show(file=f"server: {{media: {{local_path: {root}}}}}")):
        assert "would allow clients to read every file of this machine" in str(result.exception)


def test_a_server_that_is_started_in_the_root_reads_no_local_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert resolve(Config(model_path="m", device="cpu")).server.media.local_path == ""
    named = Server(media=MediaPolicy(local_path="/srv"))
    assert resolve(Config(model_path="m", device="cpu", server=named)).server.media.local_path == "/srv"


@pytest.mark.parametrize(
    ("setting", "wrong", "right"),
    [
        ("allowed_hosts", ["", "http://x", "x:80", "a/b", "*x", "*.", "a..b"], ["x", "*", "*.a.b", "a.b."]),
        ("allowed_origins", ["", "x.example", "https://x/path", "null", "http:/x"], ["*", "https://x", "http://x:1/"]),
        ("media.allowed_domains", ["", " "], ["a.org", "b:9"]),
    ],
)  # fmt: skip
def test_a_list_holds_only_what_can_match(show: Run, setting: str, wrong: list[str], right: list[str]) -> None:
    for entry in wrong:
        result = show("--set", f"server.{setting}={json.dumps([entry])}")
        assert f"server.{setting}: " in str(result.exception), entry
    assert value(show("--set", f"server.{setting}={json.dumps(right)}"), f"server.{setting}") == right


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "server: {api_keys: [x]}\nlog_level: info\nserver: {port: 1}\n",
            "x.yaml: server is set twice, in line 1 and in",
        ),
        ("server:\n  api_keys: [x]\n  api_keys: []\n", "x.yaml: api_keys is set twice, in line 2 and in line 3."),
    ],
)
def test_a_repeated_key_is_refused(show: Run, text: str, message: str) -> None:
    assert str(show(file=text).exception).startswith(message)


def test_a_repeated_key_is_refused_in_an_assignment(show: Run) -> None:
    result = show("--set", "server.media={local_path: a, local_path: b}")
    assert "local_path is set twice" in str(result.exception)


@pytest.mark.parametrize("assignment", ["server.api_keys=[{key}]", "server={{api_keys: [{key}]}}"])
def test_a_key_in_an_assignment_is_hidden(show: Run, assignment: str) -> None:
    result = show("--set", assignment.format(key=SECRET))
    assert value(result, "server.api_keys") == ["(hidden)"]
    assert SECRET not in result.output


@pytest.mark.parametrize(("mode", "noted"), [(0o644, True), (0o600, False), (0o640, False)])
def test_a_file_with_keys_that_everybody_can_read_is_noted(show: Run, tmp_path: Path, mode: int, noted: bool) -> None:
    (tmp_path / "y.yaml").write_text(f"server: {{api_keys: [{SECRET}]}}")
    (tmp_path / "y.yaml").chmod(mode)
    assert ("y.yaml contains API keys" in show("--config", "y.yaml").stderr) == noted


def test_every_origin_without_a_key_is_noted() -> None:
    def notes(**server: list[str]) -> str:
        return " ".join(resolve(Config(model_path="m", device="cpu", server=Server(**server))).notes)

    assert "any web page" in notes(allowed_origins=["*"])
    assert notes(allowed_origins=["*"], api_keys=["k"]) == notes(allowed_origins=["https://a"]) == ""
