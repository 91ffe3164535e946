"""A checkpoint without speech is served with the text stages only. A checkpoint that lacks a part of speech is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from typer.testing import CliRunner, Result

from omni_pipeline.cli import app
from omni_pipeline.config.layers import Settings, SettingsLayer, gather
from omni_pipeline.deployment.checkpoint import Checkpoint, describe_checkpoint
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.deployment.stage_checks import check_stages
from omni_pipeline.deployment.text_only import fitted
from omni_pipeline.errors import StartupError
from stages.topology import QWEN3_OMNI

SPEC = QWEN3_OMNI.checkpoint
assert SPEC is not None
REASON = "its config.json says enable_audio_output: false"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, data: Path) -> Write:
    """A function that writes the released ``config.json`` with changes; a change to None removes the field."""

    def write(**changes: Any) -> Path:
        config = json.loads((data / "qwen3_omni_30b" / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return tmp_path

    return write


def chosen(path: Path | str, *layers: SettingsLayer, **settings: Any) -> Settings:
    return gather(None, [SettingsLayer("--model-path", {"model_path": str(path), **settings}), *layers])


def plan(path: Path, *flags: str) -> Result:
    return CliRunner().invoke(app, ["plan", "--model-path", str(path), "--gpus", "2xH100-80GB", *flags])


def test_a_checkpoint_that_speaks_keeps_all_stages(write: Write) -> None:
    settings = chosen(write())
    assert fitted(settings) is settings


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"enable_audio_output": False, "talker_config": None, "code2wav_config": None}, REASON),
        ({"enable_audio_output": False}, REASON),
        (
            {"enable_audio_output": None, "talker_config": None, "code2wav_config": None},
            "its config.json has neither talker_config nor code2wav_config",
        ),
    ],
)
def test_a_checkpoint_without_speech_gets_the_text_stages_and_a_note(
    write: Write, changes: dict[str, Any], reason: str
) -> None:
    settings = fitted(chosen(write(**changes)))
    assert resolve(settings.config).graph.stage_names == tuple(
        name for name in QWEN3_OMNI.stage_names if name in QWEN3_OMNI.text_stages
    )
    assert settings.notes == (f"Text only: the checkpoint cannot speak, because {reason}.",)
    assert settings.origin("text_only") == "config.json of the checkpoint"


def test_a_flag_for_a_stage_of_speech_is_refused_with_the_reason(write: Write) -> None:
    flag = SettingsLayer("--gpu-talker", {"stages": {"talker_ar": {"gpus": [1]}}})
    with pytest.raises(StartupError) as caught:
        fitted(chosen(write(enable_audio_output=False), flag))
    assert str(caught.value) == f"--gpu-talker: this checkpoint ({REASON}) does not run talker_ar."


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"talker_config": None}, "talker_config"),
        ({"code2wav_config": None}, "code2wav_config"),
    ],
)
def test_a_description_that_lacks_a_part_of_speech_is_refused(
    write: Write, changes: dict[str, Any], missing: str
) -> None:
    path = write(**changes)
    with pytest.raises(StartupError) as caught:
        fitted(chosen(path))
    assert str(caught.value) == (
        f"config.json says that the model speaks, but config.json has no {missing}. Complete config.json or, to serve "
        "text only, pass --text-only."
    )
    assert fitted(chosen(path, text_only=True)).notes == ()


def test_a_talker_without_voices_is_refused(write: Write) -> None:
    talker = json.loads((write() / "config.json").read_text())["talker_config"]
    with pytest.raises(StartupError, match=r"config\.json has no talker_config\.speaker_id"):
        fitted(chosen(write(talker_config={**talker, "speaker_id": {}})))


def test_a_checkpoint_that_is_not_there_is_left_to_the_later_checks(tmp_path: Path) -> None:
    settings = chosen(tmp_path / "nothing")
    assert fitted(settings) is settings


def test_a_hub_name_is_looked_up_in_the_cache_and_only_a_start_asks_the_hub(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import huggingface_hub
    import huggingface_hub.constants

    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return str(write(enable_audio_output=False))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    settings = chosen("owner/thinking")
    assert fitted(settings) is settings
    assert asked == []
    assert fitted(settings, download=True).config.text_only
    assert asked == [{"name": "owner/thinking", "allow_patterns": ["config.json"]}]

    snapshot = cache / "models--owner--thinking" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((write(enable_audio_output=False) / "config.json").read_bytes())
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0")
    assert fitted(settings).config.text_only


def test_a_wrong_configuration_is_reported_before_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    wrong = SettingsLayer("--set", {"stages": {"thinker": {"device": "cpu", "gpus": [0]}}})
    with pytest.raises(StartupError, match=r"thinker cannot use a GPU"):
        fitted(chosen("owner/thinking", wrong), download=True)


def test_a_plan_counts_only_the_text_stages(write: Write) -> None:
    limited = plan(write(enable_audio_output=False, talker_config=None, code2wav_config=None))
    silent = plan(write(), "--text-only")
    assert limited.exit_code == silent.exit_code == 0
    assert limited.stdout == silent.stdout
    assert "talker_ar" not in limited.stdout
    assert f"because {REASON}." in limited.stderr


def lacking(path: Path, prefix: str, **settings: Any) -> str:
    """The error for the released checkpoint without its tensors under `prefix`."""
    assert SPEC is not None
    found = describe_checkpoint(str(path), SPEC)
    tensors = {name: stored for name, stored in found.tensors.items() if not name.startswith(prefix)}
    with pytest.raises(StartupError) as caught:
        check_stages(resolve(chosen(path, **settings).config), structs.replace(found, path="/m", tensors=tensors))
    return str(caught.value)


def test_stages_without_weights_are_named(write: Write) -> None:
    assert lacking(write(), "code2wav.") == (
        "The checkpoint /m is not complete: it has no weights for code2wav (code2wav.*). Download or copy it again or, "
        "to serve text only, pass --text-only."
    )
    assert "talker_ar (talker.codec_head.*)" in lacking(write(), "talker.codec_head.")
    assert lacking(write(), "thinker.visual.", text_only=True) == (
        "The checkpoint /m is not complete: it has no weights for image_encoder (thinker.visual.*). Download or copy "
        "it again."
    )


def test_weights_that_no_stage_needs_may_be_missing(write: Write) -> None:
    assert SPEC is not None
    found = describe_checkpoint(str(write()), SPEC)
    tensors = {name: stored for name, stored in found.tensors.items() if name.startswith("thinker.")}
    check_stages(resolve(chosen(write(), text_only=True).config), Checkpoint("/m", found.config, tensors))
