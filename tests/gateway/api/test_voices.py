"""Tests the voices that a checkpoint has, and the voice that a request gets."""

from __future__ import annotations

import json

import pytest

from gateway.api.voices import Voices, read_voices
from omni_pipeline.errors import OmniError, StartupError
from tests.gateway.json_bodies import parse

VOICES = Voices(("chelsie", "ethan", "aiden"), default="ethan")


def asked(**fields):
    return parse(json.dumps({"messages": [{"role": "user", "content": "x"}], **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "voice"),
    [
        ({}, "ethan"),
        ({"audio": {"format": "mp3"}}, "ethan"),
        ({"audio": {"voice": "default"}}, "ethan"),
        ({"audio": {"voice": "chelsie"}}, "chelsie"),
        ({"audio": {"voice": "CheLsie"}}, "chelsie"),
        ({"voice": "aiden"}, "aiden"),
        ({"speaker": "Aiden"}, "aiden"),
        ({"speaker": "Default"}, "ethan"),
        ({"voice": "default", "speaker": "aiden"}, "aiden"),
        ({"audio": {"voice": "chelsie"}, "voice": "Chelsie", "speaker": "CHELSIE"}, "chelsie"),
    ],
)
def test_a_request_gets_the_voice_it_names_or_the_default(fields, voice):
    assert VOICES.choose(asked(**fields)) == voice


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"audio": {"voice": "alloy"}}, "audio.voice"),
        ({"audio": {"voice": ""}}, "audio.voice"),
        ({"voice": "alloy"}, "voice"),
        ({"speaker": "alloy"}, "speaker"),
        ({"voice": "ethan", "speaker": "alloy"}, "speaker"),
    ],
)
def test_an_unknown_voice_is_refused_with_the_list(fields, param):
    with pytest.raises(OmniError) as caught:
        VOICES.choose(asked(**fields))
    assert (caught.value.info.status, caught.value.info.param) == (400, param)
    assert "known: chelsie, ethan (default), aiden." in caught.value.info.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"audio": {"voice": "ethan"}, "voice": "aiden"}, "voice"),
        ({"audio": {"voice": "ethan"}, "speaker": "aiden"}, "speaker"),
        ({"voice": "ethan", "speaker": "aiden"}, "speaker"),
        ({"audio": {"voice": "chelsie"}, "voice": "chelsie", "speaker": "aiden"}, "speaker"),
    ],
)
def test_fields_that_name_different_voices_are_refused(fields, param):
    with pytest.raises(OmniError) as caught:
        VOICES.choose(asked(**fields))
    assert (caught.value.info.status, caught.value.info.param) == (400, param)
    assert "this voice differs from" in caught.value.info.message


@pytest.mark.parametrize(
    ("config", "voices"),
    [
        ({"talker_config": {"speaker_id": {"chelsie": 1, "ethan": 2}}}, Voices(("chelsie", "ethan"), "ethan")),
        ({"talker_config": {"speaker_id": {"Zoe": 1, "ada": 2}}}, Voices(("zoe", "ada"), "zoe")),
        ({"talker_config": {"speaker_id": {"ethan": 2}}, "enable_audio_output": False}, None),
        ({"talker_config": {"speaker_id": {}}}, None),
        ({"talker_config": {"speaker_id": None}}, None),
        ({"talker_config": {}}, None),
        ({}, None),
    ],
)
def test_voices_are_those_of_the_configuration(config, voices, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_omni_moe"} | config))
    assert read_voices(tmp_path) == voices


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"talker_config": {"speaker_id": ["ethan"]}}', '{"enable_audio_output": "yes"}', None]
)
def test_a_configuration_that_cannot_be_read_stops_the_start(text, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(StartupError, match=r"config\.json"):
        read_voices(tmp_path)


def test_the_random_checkpoint_has_the_released_models_voices(tiny_checkpoint):
    assert read_voices(tiny_checkpoint) == Voices(("chelsie", "ethan", "aiden"), "ethan")
