"""Forms that ask for transcripts: the accepted fields, the effect of each field, and the error for each wrong field."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from gateway.answers.transcripts import task_of
from gateway.api.openapi import openapi_document
from gateway.api.transcription.request import (
    FILE,
    IGNORED,
    LONGEST_LANGUAGE,
    MOST_FIELD_BYTES,
    REFUSED,
    TranscriptRequest,
    TranslationRequest,
    parse,
    room_for,
)
from gateway.bodies.multipart import Part
from omni_pipeline.config.schema import Limits, MediaPolicy
from omni_pipeline.errors import ErrorInfo, OmniError

KINDS = [TranscriptRequest, TranslationRequest]
DOCUMENT = json.loads(json.dumps(openapi_document(with_keys=False)))

# For each field, a value that has an effect.
VALUES = {
    "language": "fr",
    "prompt": "Of ships.",
    "response_format": "verbose_json",
    "stream": "true",
    "include": "logprobs",
    "temperature": "0.5",
    "top_p": "0.5",
    "top_k": "5",
    "min_p": "0.5",
    "repetition_penalty": "1.5",
    "presence_penalty": "-1",
    "frequency_penalty": "1",
    "seed": "5",
    "max_tokens": "5",
    "max_completion_tokens": "5",
    "to_language": "de",
}
# The server has only one model, and it always chooses by itself where to cut a recording.
WITHOUT = {"model", "chunking_strategy"}


def parts(fields: dict[str, Any], file: bytes | None = b"RIFF") -> list[Part]:
    found = [
        Part(name, bytearray(value if isinstance(value, bytes) else value.encode())) for name, value in fields.items()
    ]
    return found if file is None else [*found, Part(FILE, bytearray(file))]


def read(fields: list[Part], kind: type[TranscriptRequest] = TranscriptRequest, limits: Limits | None = None) -> Any:
    limits = limits or Limits()
    for part in fields:
        room = room_for(kind, MediaPolicy(), limits, part.name)
        assert len(part.content) <= room.bytes
    form = parse(kind, fields)
    return form.request.response_format, task_of(form, limits)


def refusal(fields: list[Part], kind: type[TranscriptRequest] = TranscriptRequest, **limits: Any) -> ErrorInfo:
    with pytest.raises(OmniError) as caught:
        read(fields, kind, Limits(**limits))
    assert len(caught.value.info.message) < 500
    return caught.value.info


def test_no_field_is_forgotten_here():
    assert VALUES.keys() | WITHOUT == {*TranslationRequest.__struct_fields__}


@pytest.mark.parametrize("field", VALUES)
def test_every_field_has_an_effect(field: str):
    assert repr(read(parts({field: VALUES[field]}), TranslationRequest)) != repr(read(parts({}), TranslationRequest))


@pytest.mark.parametrize("name", ["include", "include[]", "include[0]"])
def test_a_list_has_several_spellings(name: str):
    _, task = read(parts({name: "logprobs"}))
    assert task.text.logprobs


@pytest.mark.parametrize("field", [*VALUES, "model", "user"])
def test_an_empty_field_counts_as_left_out(field: str):
    assert repr(read(parts({field: ""}), TranslationRequest)) == repr(read(parts({}), TranslationRequest))


@pytest.mark.parametrize(
    "fields", [{name: "x"} for name in IGNORED] + [{"model": "any"}, {"chunking_strategy": "auto"}]
)
def test_fields_without_effect_are_taken(fields: dict[str, str]):
    assert repr(read(parts(fields))) == repr(read(parts({})))


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_and_the_task_are_those_of_the_form(kind: type[TranscriptRequest]):
    _, task = read(parts({}, b"sound"), kind)
    assert bytes(task.recording.sound.data.buffer()) == b"sound"
    assert task.recording.task == kind.task
    assert task.recording.at_once == Limits().recording_pieces


# For each wrong form: the fields of the form, the code of the error, the field that the error names, and a part of the
# message.
WRONG = {
    "an unknown field": ({"langage": "en"}, "unknown_parameter", "langage", "did you mean 'language'"),
    "an unlike field": ({"x": "1"}, "unknown_parameter", "x", "known: chunking_strategy, file"),
    "a target of a transcript": ({"to_language": "en"}, "unknown_parameter", "to_language", "Unknown field"),
    "times": ({"timestamp_granularities[]": "word"}, "unsupported_parameter",
              "timestamp_granularities", "times of words"),
    "times of segments": ({"timestamp_granularities": "segment"}, "unsupported_parameter",
                          "timestamp_granularities", "times of words"),
    "speakers": ({"known_speaker_names[]": "Ann"}, "unsupported_parameter", "known_speaker_names", "speaker"),
    "voices": ({"known_speaker_references[]": "data:"}, "unsupported_parameter", "known_speaker_references", "speaker"),
    "srt": ({"response_format": "srt"}, "unsupported_value", "response_format", "subtitles need times"),
    "vtt": ({"response_format": "vtt"}, "unsupported_value", "response_format", "subtitles need times"),
    "diarized": ({"response_format": "diarized_json"}, "unsupported_value", "response_format", "speaker"),
    "no such format": ({"response_format": "xml"}, "invalid_value", "response_format", "json, text, verbose_json"),
    "a long format": ({"response_format": "x" * 60_000}, "invalid_value", "response_format", "not one of"),
    "cuts of its own": ({"chunking_strategy": '{"type": "server_vad"}'}, "unsupported_value", "chunking_strategy",
                        "send 'auto'"),
    "a part of cuts": ({"chunking_strategy[type]": "server_vad"}, "unsupported_value", "chunking_strategy", "auto"),
    "no such content": ({"include": "words"}, "invalid_value", "include", "not one of these values: logprobs"),
    "log-probabilities of plain text": ({"include": "logprobs", "response_format": "text"}, "unsupported_value",
                                        "include", "'json'"),
    "log-probabilities in segments": ({"include[]": "logprobs", "response_format": "verbose_json"},
                                      "unsupported_value", "include", "'json'"),
    "a verbose stream": ({"stream": "true", "response_format": "verbose_json"}, "unsupported_value",
                         "response_format", "cannot have this format"),
    "a stream of what": ({"stream": "yes"}, "invalid_value", "stream", "'yes' is not 'true' or 'false'"),
    "a cold temperature": ({"temperature": "-0.1"}, "invalid_value", "temperature", ">= 0"),
    "a hot temperature": ({"temperature": "2.1"}, "invalid_value", "temperature", "<= 2"),
    "a temperature in words": ({"temperature": "warm"}, "invalid_value", "temperature", "'warm' is not a number"),
    "no number": ({"temperature": "NaN"}, "invalid_value", "temperature", ">= 0"),
    "infinity": ({"temperature": "Infinity"}, "invalid_value", "temperature", "<= 2"),
    "a number in a list": ({"temperature": "[1]"}, "invalid_value", "temperature", "not a number"),
    "half a seed": ({"seed": "1.5"}, "invalid_value", "seed", "'1.5' is not a whole number"),
    "a large seed": ({"seed": "9" * 30}, "invalid_value", "seed", "<= 9223372036854775807"),
    "a huge seed": ({"seed": "9" * 60_000}, "invalid_value", "seed", ""),
    "all of the mass": ({"top_p": "1.1"}, "invalid_value", "top_p", "<= 1"),
    "few candidates": ({"top_k": "-2"}, "invalid_value", "top_k", ">= -1"),
    "a large minimum": ({"min_p": "2"}, "invalid_value", "min_p", "<= 1"),
    "no repetition": ({"repetition_penalty": "0"}, "invalid_value", "repetition_penalty", ">= 0.01"),
    "much presence": ({"presence_penalty": "3"}, "invalid_value", "presence_penalty", "<= 2"),
    "little frequency": ({"frequency_penalty": "-3"}, "invalid_value", "frequency_penalty", ">= -2"),
    "no tokens": ({"max_tokens": "0"}, "invalid_value", "max_tokens", ">= 1"),
    "two limits": ({"max_tokens": "1", "max_completion_tokens": "2"}, "invalid_value", "max_completion_tokens",
                   "differs from the value of 'max_tokens'"),
    "a long language": ({"language": "x" * (LONGEST_LANGUAGE + 1)}, "invalid_value", "language", "length <= 64"),
    "a prompt that is not text": ({"prompt": b"\xff"}, "invalid_value", "prompt", "not UTF-8 (byte 0)"),
    "a model that is not text": ({"model": b"a\x80"}, "invalid_value", "model", "not UTF-8 (byte 1)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_form_is_refused(name: str):
    fields, code, param, message = WRONG[name]
    info = refusal(parts(fields))
    assert (info.status, info.code, info.param) == (400, code, param)
    assert message in info.message


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_needs_one_file(kind: type[TranscriptRequest]):
    assert refusal(parts({}, None), kind).code == "missing_required_parameter"
    assert refusal(parts({}, b""), kind).code == "invalid_audio"
    assert refusal([*parts({}), *parts({})], kind).code == "invalid_value"
    assert {refusal(part, kind).param for part in (parts({}, None), parts({}, b""), parts({}) * 2)} == {"file"}


@pytest.mark.parametrize("field", sorted(VALUES.keys() - {"include", "to_language"}))
def test_a_field_is_sent_once(field: str):
    info = refusal([*parts({field: VALUES[field]}), *parts({field: VALUES[field]}, None)])
    assert (info.status, info.param) == (400, field)


def test_the_operator_s_limit_on_tokens_holds():
    info = refusal(parts({"max_tokens": "9"}), output_tokens=8)
    assert (info.status, info.param) == (400, "max_tokens")
    _, task = read(parts({}), limits=Limits(output_tokens=8))
    assert task.sampling.max_tokens == 8


def test_the_room_of_fields_is_bounded():
    limits, media = Limits(body_bytes=500), MediaPolicy(max_bytes=1000)
    assert room_for(TranscriptRequest, media, limits, "file").bytes == 500
    assert room_for(TranscriptRequest, media, Limits(), "file").bytes == 1000
    assert room_for(TranscriptRequest, media, limits, "prompt").bytes == MOST_FIELD_BYTES


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/audio/transcriptions", TranscriptRequest), ("/v1/audio/translations", TranslationRequest)]
)
def test_the_description_names_every_field(path: str, kind: type[TranscriptRequest]):
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
    schema = content["multipart/form-data"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"].keys() == {*kind.__struct_fields__, FILE, *IGNORED}
    assert schema["required"] == [FILE]
    assert not REFUSED.keys() & schema["properties"].keys()
