"""Tests that the streams of this server, of OpenAI and of two similar servers are read correctly."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy
import pytest
import soundfile

from gateway.bench.events import AnswerError, Event, EventSplitter, failure_of, read_event
from gateway.bench.timeline import Failure, PromptTokens


def wav(seconds: float, rate: int = 24_000, subtype: str = "PCM_16") -> str:
    """A WAV file in base64."""
    file = io.BytesIO()
    soundfile.write(file, numpy.zeros(int(seconds * rate), dtype=numpy.float32), rate, format="WAV", subtype=subtype)
    return base64.b64encode(file.getvalue()).decode()


def pcm(samples: int) -> str:
    return base64.b64encode(bytes(2 * samples)).decode()


def chunk(delta: dict[str, Any], **more: Any) -> str:
    return json.dumps({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]} | more)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_found_wherever_the_network_cut_them(size: int) -> None:
    stream = (
        'data: {"a": 1}\n\n: keep-alive\n\ndata: {"b": "é"}\r\n\r\nevent: x\ndata:one\ndata: two\n\ndata: [DONE]\n\n'
    )
    received = stream.encode()
    splitter = EventSplitter()
    events = [data for at in range(0, len(received), size) for data in splitter.feed(received[at : at + size])]
    assert events == ['{"a": 1}', '{"b": "é"}', "one\ntwo", "[DONE]"]


def test_unfinished_event_is_kept_for_later() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: {") == []
    assert splitter.feed(b"}\n") == []
    assert splitter.feed(b"\n") == ["{}"]


METADATA = {"format": "pcm16", "sample_rate_hz": 48_000, "frame_count": 2400, "channels": 2}


@pytest.mark.parametrize(
    ("data", "event"),
    [
        (chunk({"role": "assistant", "content": ""}, modality="text"), Event()),
        (chunk({"content": "Hi"}, modality="text"), Event(text="Hi")),
        (chunk({"content": "Hi"}), Event(text="Hi")),
        (chunk({"audio": {"id": "a", "data": wav(0.5)}}, modality="audio"), Event(audio_seconds=0.5)),
        (chunk({"audio": {"id": "a", "data": wav(0.25, subtype="FLOAT")}}), Event(audio_seconds=0.25)),
        (chunk({"audio": {"data": pcm(2400)}}, modality="audio"), Event(audio_seconds=0.1)),
        (chunk({"audio": {"data": pcm(9600)}}, audio_metadata=METADATA), Event(audio_seconds=0.1)),
        (chunk({"audio": {"id": "a", "transcript": "Hi", "expires_at": 1}}, modality="audio"), Event()),
        (chunk({"content": "Hi", "audio": {"id": "a", "data": wav(0.5)}}), Event(text="Hi", audio_seconds=0.5)),
        (chunk({"content": wav(0.75, rate=16_000)}, modality="audio"), Event(audio_seconds=0.75)),
        (json.dumps({"choices": [], "usage": {"completion_tokens": 9}}), Event(tokens=9)),
        (
            json.dumps(
                {"choices": [], "usage": {"completion_tokens": 9, "completion_tokens_details": {"audio_tokens": 4}}}
            ),
            Event(tokens=5),
        ),
        (
            json.dumps(
                {
                    "choices": [],
                    "usage": {
                        "completion_tokens": 9,
                        "prompt_tokens": 30,
                        "prompt_tokens_details": {"cached_tokens": 20},
                    },
                }
            ),
            Event(tokens=9, prompt=PromptTokens(30, 20)),
        ),
        (json.dumps({"choices": [{"delta": {}, "finish_reason": "length"}]}), Event(finish_reason="length")),
    ],
    ids=[
        "role", "text", "text without a modality", "WAV", "float WAV", "PCM", "PCM with metadata", "transcript",
        "text and sound", "WAV in content", "usage", "usage with audio tokens", "usage with cached tokens",
        "finish reason",
    ],
)  # fmt: skip
def test_chunk_is_read(data: str, event: Event) -> None:
    assert read_event(data) == event


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("no JSON", "invalid_stream"),
        ('{"choices": "none"}', "invalid_stream"),
        (chunk({"audio": {"data": "?"}}), "invalid_audio"),
        (chunk({"audio": {"data": base64.b64encode(b"RIFF and nothing else").decode()}}), "invalid_audio"),
    ],
)
def test_unreadable_event_is_an_error_with_its_code(data: str, code: str) -> None:
    with pytest.raises(AnswerError) as caught:
        read_event(data)
    assert caught.value.code == code


def test_error_in_the_stream_is_a_failure() -> None:
    event = read_event('{"error": {"message": "gone", "type": "server_error", "param": null, "code": "worker_lost"}}')
    assert event.failure == Failure("worker_lost", "gone", 200)


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (
            {"error": {"message": "no", "type": "invalid_request_error", "param": "ignore_eos", "code": "unknown"}},
            Failure("unknown", "no", 400, "ignore_eos"),
        ),
        ({"error": {"message": "no", "code": 400}}, Failure("http_400", "no", 400)),
        ({"object": "error", "message": "no", "code": 400}, Failure("http_400", "no", 400)),
        ({"detail": "no"}, Failure("http_400", "no", 400)),
        ({"error": "no"}, Failure("http_400", "no", 400)),
        (["no"], Failure("http_400", "['no']", 400)),
    ],
    ids=["OpenAI", "number for a code", "flat", "FastAPI", "string", "something else"],
)
def test_error_body_is_read(body: Any, failure: Failure) -> None:
    assert failure_of(body, 400) == failure
