"""The fields of a request to read a text aloud: accepted values, refused values, and the effect of each field."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from gateway.api.openapi import openapi_document
from gateway.api.schema import EXTRA
from gateway.api.speech_request import IGNORED, REFUSED, SpeechBody, SpokenText, read_speech_request
from gateway.api.voices import Voices
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError
from stages.messages import Sampling
from tests.gateway.json_bodies import read

VOICES = Voices(("chelsie", "ethan"), "ethan")
LIMITS = Limits(speech_characters=50_000, speech_tokens=1000)
DOCUMENT = json.loads(json.dumps(openapi_document(with_keys=False)))
BODY = jsonschema.Draft202012Validator(
    {"$ref": "#/components/schemas/SpeechBody", "components": DOCUMENT["components"]}
)

GOOD: list[dict[str, Any]] = [
    {"model": "tts-1", "voice": "Ethan", "response_format": "opus", "speed": 1.0},
    {"voice": {"id": "chelsie"}, "stream_format": "sse", "speed": 1, "instructions": ""},
    {"voice": "default", "stream": True, "user": "me", "instructions": "Speak slowly."},
    {"seed": -5, "stage_sampling": {"talker_ar": {"temperature": 0}, "code_predictor": {"top_k": -1}}},
    {"extra_body": {"seed": 3}, "language": "Auto", "sample_rate": 24000},
    {"voice": None, "model": None, "speed": None, "ref_audio": None, "unknown": None},
]

# For each refused request: the fields of the request, the code of the error, the field that the error names, and a part
# of the message. If the value of `input` is None, the request has no input.
WRONG: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "no input": ({"input": None}, "missing_required_parameter", "input", "Missing required field"),
    "empty input": ({"input": ""}, "invalid_value", "input", "length >= 1"),
    "white space": ({"input": " \n\t"}, "invalid_value", "input", "no words"),
    "wide white space": ({"input": "\u3000\u2003"}, "invalid_value", "input", "no words"),
    "input as a number": ({"input": 5}, "invalid_value", "input", "got `int`"),
    "input as a list": ({"input": ["Hello"]}, "invalid_value", "input", "got `array`"),
    "long input": ({"input": "a" * 50_001}, "text_too_long", "input", "50001 characters, but only 50000 are allowed"),
    "unknown field": ({"inptu": "Hello"}, "unknown_parameter", "inptu", "did you mean 'input'"),
    "messages": ({"messages": []}, "unknown_parameter", "messages", "Unknown field"),
    "text": ({"text": "Hello"}, "unknown_parameter", "text", "Unknown field"),
    "model as a number": ({"model": 1}, "invalid_value", "model", "got `int`"),
    "no such voice": ({"voice": "alloy"}, "invalid_value", "voice", "known: chelsie, ethan (default)"),
    "empty voice": ({"voice": ""}, "invalid_value", "voice", "no voice ''"),
    "voice as a list": ({"voice": ["ethan"]}, "invalid_value", "voice", "got `array`"),
    "voice without id": ({"voice": {}}, "missing_required_parameter", "voice.id", "Missing"),
    "voice by name": ({"voice": {"name": "x"}}, "unknown_parameter", "voice.name", "known: id"),
    "no such custom voice": ({"voice": {"id": "voice_123"}}, "invalid_value", "voice", "no voice 'voice_123'"),
    "no such format": ({"response_format": "ogg"}, "invalid_value", "response_format", "known: wav"),
    "format as a bool": ({"response_format": True}, "invalid_value", "response_format", "bool"),
    "format of chat": ({"response_format": {"type": "text"}}, "invalid_value", "response_format", "object"),
    "no such stream": ({"stream_format": "websocket"}, "invalid_value", "stream_format", "known: audio, sse"),
    "fast": ({"speed": 1.5}, "unsupported_value", "speed", "must be 1"),
    "slow": ({"speed": 0.25}, "unsupported_value", "speed", "must be 1"),
    "speed as text": ({"speed": "1"}, "invalid_value", "speed", "got `str`"),
    "speed as a bool": ({"speed": True}, "invalid_value", "speed", "got `bool`"),
    "long instructions": ({"instructions": "a" * 4097}, "invalid_value", "instructions", "length <= 4096"),
    "instructions as a list": ({"instructions": []}, "invalid_value", "instructions", "got `array`"),
    "seed as text": ({"seed": "5"}, "invalid_value", "seed", "got `str`"),
    "large seed": ({"seed": 2**63}, "invalid_value", "seed", "int"),
    "broken seed": ({"seed": 1.5}, "invalid_value", "seed", "float"),
    "thinker": ({"stage_sampling": {"thinker": {}}}, "unknown_parameter", "stage_sampling.thinker", "talker_ar"),
    "hot talker": (
        {"stage_sampling": {"talker_ar": {"temperature": 3}}},
        "invalid_value", "stage_sampling.talker_ar.temperature", "<= 2",
    ),
    "long talker": (
        {"stage_sampling": {"talker_ar": {"max_tokens": 1001}}},
        "invalid_value", "stage_sampling.talker_ar.max_tokens", "at most 1000",
    ),
    "no tokens": (
        {"stage_sampling": {"talker_ar": {"max_tokens": 0}}},
        "invalid_value", "stage_sampling.talker_ar.max_tokens", ">= 1",
    ),
    "long frames": (
        {"stage_sampling": {"code_predictor": {"max_tokens": 5}}},
        "unknown_parameter", "stage_sampling.code_predictor.max_tokens", "Unknown field",
    ),
    "temperature": ({"temperature": 1}, "unsupported_parameter", "temperature", "stage_sampling"),
    "reference": ({"ref_audio": "data:,"}, "unsupported_parameter", "ref_audio", "voices of its checkpoint"),
    "language": ({"language": "English"}, "unsupported_parameter", "language", "from the text"),
    "sampling rate": ({"sample_rate": 16000}, "unsupported_parameter", "sample_rate", "24000"),
    "two seeds": ({"seed": 1, "extra_body": {"seed": 2}}, "invalid_value", "extra_body.seed", "differs"),
    "unknown extra": ({"extra_body": {"sed": 2}}, "unknown_parameter", "extra_body.sed", "did you mean 'seed'"),
    "extra as text": ({"extra_body": "seed"}, "invalid_value", "extra_body", "got `str`"),
}  # fmt: skip

# Rules that the API's description does not express.
UNDESCRIBED = {
    "white space", "wide white space", "long input", "no such voice", "empty voice", "no such custom voice",
    "long talker", "two seeds",
}  # fmt: skip


def body(**fields: Any) -> dict[str, Any]:
    return {
        name: value for name, value in ({"input": "Hello!"} | fields).items() if name != "input" or value is not None
    }


def understood(**fields: Any) -> SpokenText:
    return read_speech_request(read(json.dumps(body(**fields)).encode()), VOICES, LIMITS)


@pytest.mark.parametrize("fields", GOOD)
def test_what_is_taken_conforms_to_the_description(fields):
    assert understood(**fields).request.text == "Hello!"
    BODY.validate(body(**fields))


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_names_the_field(name):
    fields, code, param, part = WRONG[name]
    with pytest.raises(OmniError) as caught:
        understood(**fields)
    assert (caught.value.info.status, caught.value.info.code, caught.value.info.param) == (400, code, param)
    assert part in caught.value.info.message
    assert BODY.is_valid(body(**fields)) == (name in UNDESCRIBED)


def test_the_table_is_long_enough():
    assert len(WRONG) >= 30


def test_the_description_names_every_field():
    described = DOCUMENT["components"]["schemas"]["SpeechBody"]
    assert described["properties"].keys() == {*SpeechBody.__struct_fields__, *IGNORED, *REFUSED, EXTRA}


def test_defaults_are_those_of_the_openai_api_and_of_the_reference():
    spoken = understood()
    assert (spoken.audio_format, spoken.events) == ("mp3", False)
    speech = spoken.request.speech
    assert (spoken.request.instructions, speech.speaker, speech.streamed) == ("", "ethan", True)
    assert speech.talker == Sampling(temperature=0.9, top_k=50, repetition_penalty=1.05, max_tokens=1000)
    assert speech.predictor == Sampling(temperature=1.0, top_k=50, top_p=0.8)


EFFECTS = {
    "input": "Goodbye.",
    "voice": "chelsie",
    "instructions": "Speak slowly.",
    "response_format": "wav",
    "stream_format": "sse",
    "seed": 5,
    "stage_sampling": {"talker_ar": {"top_k": 5}},
}


def test_no_field_is_forgotten_here():
    assert EFFECTS.keys() | {"model", "speed"} == {*SpeechBody.__struct_fields__}


@pytest.mark.parametrize("field", EFFECTS)
def test_a_field_has_an_effect(field):
    assert understood(**{field: EFFECTS[field]}) != understood()


def test_a_seed_is_another_one_for_each_stage_and_a_stages_own_wins():
    speech = understood(seed=5, stage_sampling={"code_predictor": {"seed": 7}}).request.speech
    assert speech.talker.seed not in (None, 5)
    assert speech.predictor.seed == 7


def test_a_long_text_is_taken_as_it_is():
    text = 'Hello \u00fc \\ "world". ' * 2000
    assert understood(input=text).request.text == text


def test_too_much_text_is_refused_before_it_is_decoded():
    data = json.dumps({"input": "Hello", "user": "x" * 40_000}).encode()
    with pytest.raises(OmniError) as caught:
        read_speech_request(read(data), VOICES, Limits(text_bytes=30_000))
    assert (caught.value.info.status, caught.value.info.code) == (413, "text_too_large")


def test_a_server_without_speech_says_so():
    with pytest.raises(OmniError) as caught:
        read_speech_request(read(json.dumps(body()).encode()), None, LIMITS)
    assert (caught.value.info.status, caught.value.info.code) == (400, "unsupported_value")
