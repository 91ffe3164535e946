"""Transcripts and translations of a complete server equal the model's answers to the documented prompts."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import openai
import pytest
import requests
import soundfile

from tests.server import Server

RATE = 16_000
TOKENS = 6
SHORT = {"max_tokens": TOKENS}
ENGLISH = "Transcribe the English audio into text."
TO_ENGLISH = "Listen to the provided French speech and produce a translation in English text."


@pytest.fixture(scope="module")
def question(data: Path) -> bytes:
    return (data / "query_to_cars.wav").read_bytes()


@pytest.fixture(scope="module")
def long_sound(question: bytes) -> numpy.ndarray:
    """Fifty seconds of spoken questions with pauses: float32 [samples] at the model's rate."""
    wave, rate = soundfile.read(io.BytesIO(question), dtype="float32")
    assert rate == RATE
    pause = numpy.zeros(RATE // 2, numpy.float32)
    once = numpy.concatenate([wave, pause])
    return numpy.tile(once, 50 * RATE // len(once) + 1)[: 50 * RATE]


def wav(wave: numpy.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, "FLOAT", format="WAV")
    return file.getvalue()


def chat(client: openai.OpenAI, sound: bytes, prompt: str, system: str = "", **options: Any) -> Any:
    """The choice in the answer to a chat request with this sound and prompt."""
    audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}}
    messages: list[Any] = [{"role": "user", "content": [audio, {"type": "text", "text": prompt}]}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return client.chat.completions.create(model="m", messages=messages, **SHORT | options).choices[0]


def test_a_transcript_is_the_answer_to_the_documented_prompt(client: openai.OpenAI, question: bytes) -> None:
    create = client.audio.transcriptions.create
    heard = create(file=question, model="m", language="en", include=["logprobs"], extra_body=SHORT)
    choice = chat(client, question, ENGLISH, logprobs=True)
    assert heard.text == choice.message.content
    found = heard.logprobs or []
    assert [each.token for each in found] == [each.token for each in choice.logprobs.content]
    logprobs = [each.logprob for each in choice.logprobs.content]
    assert [each.logprob for each in found] == pytest.approx(logprobs, abs=1e-4)
    assert create(file=question, model="m", response_format="text", extra_body=SHORT) == (
        chat(client, question, "Transcribe the audio into text.").message.content
    )
    primed = create(file=question, model="m", language="en", prompt="Of cars.", extra_body=SHORT)
    assert primed.text == chat(client, question, ENGLISH, "Of cars.").message.content


def test_a_translation_is_the_answer_to_the_documented_prompt(client: openai.OpenAI, question: bytes) -> None:
    english = client.audio.translations.create(file=question, model="m", extra_body=SHORT | {"language": "fr"})
    assert english.text == chat(client, question, TO_ENGLISH).message.content


@pytest.mark.parametrize("options", [{}, {"temperature": 1, "seed": 5, "top_k": 20}, {"repetition_penalty": 1.5}])
def test_sampling_is_that_of_a_chat_request(
    server: Server, client: openai.OpenAI, question: bytes, options: dict[str, Any]
) -> None:
    response = requests.post(
        f"{server.url}/v1/audio/transcriptions", files={"file": question}, data=SHORT | options, timeout=60
    )
    penalty = {name: value for name, value in options.items() if name in ("top_k", "repetition_penalty")}
    plain = {name: value for name, value in options.items() if name not in penalty}
    prompt = "Transcribe the audio into text."
    assert response.json()["text"] == chat(client, question, prompt, **plain, extra_body=penalty).message.content


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_every_format_of_sound_is_read(client: openai.OpenAI, question: bytes, format: str) -> None:
    wave, _ = soundfile.read(io.BytesIO(question), dtype="float32")
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format=format)
    heard = client.audio.transcriptions.create(file=file.getvalue(), model="m", language="en", extra_body=SHORT)
    assert heard.text == chat(client, file.getvalue(), ENGLISH).message.content


def test_the_sound_track_of_a_clip_is_heard(client: openai.OpenAI, data: Path) -> None:
    clips = [clip for clip in sorted(data.glob("*.mp4")) if b"mp4a" in clip.read_bytes()]
    for clip in clips[:1]:
        assert client.audio.transcriptions.create(file=clip, model="m", extra_body=SHORT).text


def test_a_long_sound_is_cut_and_each_piece_is_answered_alone(client: openai.OpenAI, long_sound: numpy.ndarray) -> None:
    whole = client.audio.transcriptions.create(
        file=wav(long_sound), model="m", language="en", response_format="verbose_json", extra_body=SHORT
    )
    segments = whole.segments or []
    assert len(segments) >= 2
    assert whole.duration == pytest.approx(50)
    assert (segments[0].start, segments[-1].end) == (0, whole.duration)
    for before, after in pairwise(segments):
        assert before.end == after.start
        around = long_sound[int((before.end - 0.05) * RATE) : int((before.end + 0.05) * RATE)]
        assert numpy.abs(around).max() < 0.01, "it is cut in a pause"
    for segment in segments:
        piece = long_sound[round(segment.start * RATE) : round(segment.end * RATE)]
        choice = chat(client, wav(piece), ENGLISH, logprobs=True, extra_body={"return_token_ids": True})
        assert segment.text == choice.message.content
        assert segment.tokens == choice.token_ids
        logprobs = [each.logprob for each in choice.logprobs.content]
        assert segment.avg_logprob == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)


def test_a_stream_has_the_same_text(client: openai.OpenAI, long_sound: numpy.ndarray) -> None:
    create = client.audio.transcriptions.create
    events = list(create(file=wav(long_sound), model="m", language="en", stream=True, extra_body=SHORT))
    whole = create(file=wav(long_sound), model="m", language="en", extra_body=SHORT)
    *deltas, done = events
    assert "".join(event.delta for event in deltas) == done.text == whole.text
    assert done.usage.model_dump() == whole.usage.model_dump()


def test_many_at_once_do_not_disturb_each_other(client: openai.OpenAI, question: bytes, long_sound: Any) -> None:
    sounds = [question, wav(long_sound), wav(long_sound[: 3 * RATE]), wav(long_sound[: 31 * RATE])]

    def text(sound: bytes) -> str:
        return client.audio.transcriptions.create(file=sound, model="m", language="en", extra_body=SHORT).text

    alone = [text(sound) for sound in sounds]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(text, sounds * 2)) == alone * 2


BROKEN_FORM = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc'
FORM_TYPE = {"content-type": "multipart/form-data; boundary=b"}

# For each bad request: what is sent, and the status, code and field of the error.
BAD: dict[str, tuple[dict[str, Any], int, str, str | None]] = {
    "no form": ({"json": {"file": "x"}}, 415, "invalid_content_type", None),
    "another form": ({"data": {"file": "x"}}, 415, "invalid_content_type", None),
    "nothing": ({}, 415, "invalid_content_type", None),
    "no boundary": ({"data": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "invalid_multipart", None),
    "no part": ({"data": b"x", "headers": FORM_TYPE}, 400, "invalid_multipart", None),
    "a form that breaks off": ({"data": BROKEN_FORM, "headers": FORM_TYPE}, 400, "invalid_multipart", "file"),
    "a compressed form": ({"data": b"\x1f\x8b", "headers": FORM_TYPE | {"content-encoding": "gzip"}}, 415,
                          "invalid_content_encoding", None),
    "no file": ({"files": {"model": (None, "m")}}, 400, "missing_required_parameter", "file"),
    "an empty file": ({"files": {"file": b""}}, 400, "invalid_audio", "file"),
    "text": ({"files": {"file": b"Transcribe me."}}, 400, "invalid_audio", "file"),
    "zeros": ({"files": {"file": bytes(5000)}}, 400, "invalid_audio", "file"),
    "half a sound": ({"files": {"file": "half"}}, 400, "invalid_audio", "file"),
    "a picture": ({"files": {"file": "cars.jpg"}}, 400, "invalid_audio", "file"),
    "a large file": ({"files": {"file": bytes(4 * 1024 * 1024 + 1)}}, 413, "media_too_large", "file"),
    "a large field": ({"files": {"file": "whole"}, "data": {"prompt": "x" * 65_537}}, 413, "field_too_large", "prompt"),
    "two files": ({"files": [("file", b"a"), ("file", b"b")]}, 400, "invalid_value", "file"),
    "no such language": ({"files": {"file": "whole"}, "data": {"language": "xx"}}, 400, "invalid_value", "language"),
    "no such field": ({"files": {"file": "whole"}, "data": {"langage": "en"}}, 400, "unknown_parameter", "langage"),
    "a file of another name": ({"files": {"audio": "whole"}}, 400, "unknown_parameter", "audio"),
    "subtitles": ({"files": {"file": "whole"}, "data": {"response_format": "srt"}}, 400, "unsupported_value",
                  "response_format"),
    "a stream that cannot be": ({"files": {"file": "half"}, "data": {"stream": "true"}}, 400, "invalid_audio", "file"),
}  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(server: Server, data: Path, question: bytes, path: str, name: str) -> None:
    sent, status, code, param = BAD[name]
    files = {"whole": question, "half": question[: len(question) // 2], "cars.jpg": (data / "cars.jpg").read_bytes()}
    if isinstance(sent.get("files"), dict):
        given = {key: files.get(file, file) if isinstance(file, str) else file for key, file in sent["files"].items()}
        sent = sent | {"files": given}
    response = requests.post(server.url + path, timeout=60, **sent)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
    assert server.healthy()


def test_an_unknown_target_is_refused(server: Server, question: bytes) -> None:
    response = requests.post(
        f"{server.url}/v1/audio/translations", files={"file": question}, data={"to_language": "tlh"}, timeout=60
    )
    assert (response.status_code, json.loads(response.text)["error"]["param"]) == (400, "to_language")
