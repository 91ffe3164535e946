"""A configuration file is checked, the source with the highest precedence sets each value, and errors in the file are
explained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omni_pipeline.config.layers import SettingsLayer, gather
from omni_pipeline.config.schema import Config, merge
from omni_pipeline.errors import StartupError


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return path

    return write


def test_nothing_said_gives_the_defaults() -> None:
    assert gather(None).config == Config()


def test_empty_file_gives_the_defaults(write: Any) -> None:
    assert gather(write("# nothing\n")).config == Config()


def test_file_wins_over_defaults_and_flags_over_the_file(write: Any) -> None:
    path = write("server: {port: 1111, host: file}\nstages: {thinker: {threads: 2}}")
    config = gather(path, [SettingsLayer("--port", {"server": {"port": 2222}})]).config
    assert (config.server.host, config.server.port) == ("file", 2222)
    assert config.server.limits.requests == Config().server.limits.requests
    assert config.stages["thinker"].threads == 2


def test_merge_replaces_lists_and_joins_mappings() -> None:
    assert merge({"a": {"x": 1, "y": [1]}, "b": 1}, {"a": {"y": [2]}}) == {"a": {"x": 1, "y": [2]}, "b": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sever: {}", "sever: there is no such setting; did you mean server?"),
        ("server: {prot: 1}", "server.prot: there is no such setting; did you mean port?"),
        ("server: {media: {max_item: 1}}", "server.media.max_item: there is no such setting; did you mean max_items?"),
        ("stages: {thinker: {wroker: x}}", "stages.thinker.wroker: there is no such setting; did you mean worker?"),
        ("server: {limits: {zzz: 1}}", "server.limits.zzz: there is no such setting; known here: requests, "),
        ("server: {port: 70000}", "server.port: expected `int` <= 65535."),
        ("server: {port: '80'}", "server.port: expected `int`, got `str`."),
        ("server: 3", "server: expected `object`, got `int`."),
        ("device: gpu", "device: invalid enum value 'gpu'."),
        ("stages: {thinker: {threads: 0}}", "stages.thinker.threads: expected `int` >= 1."),
        ("- a\n- b", "must be a mapping, not a list."),
        ("a: [", "it is not YAML"),
    ],
)
def test_mistake_is_explained_with_its_place(write: Any, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(StartupError) as caught:
        gather(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StartupError, match="UTF-8"):
        gather(tmp_path / "x.yaml")


def test_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file"):
        gather(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("value", "by_prefix"), [("auto", True), ("on", True), ("off", False), ("'off'", False), ("false", False)]
)
def test_routing_by_prefix_can_be_turned_off_with_and_without_quotation_marks(
    write: Any, value: str, by_prefix: bool
) -> None:
    assert gather(write(f"routing: {{prefix: {value}, overload: 2}}")).config.routing.by_prefix == by_prefix


def test_an_overload_below_the_mean_load_is_refused(write: Any) -> None:
    with pytest.raises(StartupError, match=r"routing\.overload: expected `float` >= 1"):
        gather(write("routing: {overload: 0.5}"))
