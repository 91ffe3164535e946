"""Tests that whole answers of this server, of OpenAI and of similar servers are read correctly."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.bench.completion import Completion, read_completion
from gateway.bench.events import AnswerError
from gateway.bench.timeline import PromptTokens
from tests.gateway.bench.scripted_server import wav, whole


def choice(**message: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": None} | message, "finish_reason": "stop"}


def read(*choices: dict[str, Any], **more: Any) -> Completion:
    return read_completion(json.dumps({"choices": list(choices)} | more).encode())


def test_spoken_answer_has_its_length() -> None:
    assert read_completion(json.dumps(whole(3, 0.5).body).encode()) == Completion(0.5, 3, "length")


def test_speech_tokens_are_no_text_tokens() -> None:
    usage = {"completion_tokens": 10, "completion_tokens_details": {"audio_tokens": 7}}
    assert read(choice(content="a"), usage=usage).tokens == 3


def test_cached_tokens_of_the_prompt_are_read() -> None:
    usage = {"completion_tokens": 10, "prompt_tokens": 30, "prompt_tokens_details": {"cached_tokens": 20}}
    assert read(choice(content="a"), usage=usage).prompt == PromptTokens(30, 20)
    assert read(choice(content="a"), usage={"completion_tokens": 10, "prompt_tokens": 30}).prompt is None


def test_sound_in_a_choice_of_its_own_is_found() -> None:
    assert read(choice(content="a"), choice(audio={"data": wav(0.25)})).audio_seconds == 0.25


def test_sound_may_be_samples() -> None:
    assert read(choice(audio={"data": base64.b64encode(bytes(2 * 12_000)).decode()})).audio_seconds == 0.5


@pytest.mark.parametrize("audio", [None, {"data": ""}, {"data": None}], ids=str)
def test_answer_without_sound_has_length_zero(audio: Any) -> None:
    assert read(choice(audio=audio)) == Completion(0.0, None, "stop")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"data: {}", "invalid_answer"),
        (b'{"object": "chat.completion"}', "invalid_answer"),
        (b'{"choices": []}', "invalid_answer"),
        (json.dumps({"choices": [choice(audio={"data": "?"})]}).encode(), "invalid_audio"),
    ],
    ids=["not JSON", "no choices", "empty choices", "not base64"],
)
def test_answer_that_cannot_be_read_has_a_code(body: bytes, code: str) -> None:
    with pytest.raises(AnswerError) as caught:
        read_completion(body)
    assert caught.value.code == code
