"""OpenAI's client gets the same results from the Responses API as from chat completions."""

from __future__ import annotations

import http.client
import json
from typing import Any

import openai
import pytest

from tests.served.test_bad_input import Bad
from tests.server import Server

DRAWN = {"temperature": 1, "extra_body": {"seed": 7}}
PICTURE = {"type": "input_image", "image_url": "tests/data/cars.jpg", "detail": "auto"}
SOUND = {"type": "audio_url", "audio_url": {"url": "tests/data/query_to_cars.wav"}}
CLIP = {"type": "video_url", "video_url": {"url": "tests/data/draw.mp4"}}
TEXT = {"type": "input_text", "text": "What is this?"}


def chat_text(client: openai.OpenAI, messages: list[Any], **fields: Any) -> str | None:
    answer = client.chat.completions.create(model="qwen3-omni", messages=messages, max_tokens=12, **fields)
    return answer.choices[0].message.content


@pytest.mark.parametrize("parts", [[TEXT], [PICTURE, TEXT], [TEXT, SOUND], [CLIP, TEXT]])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_that_of_chat(client: openai.OpenAI, parts: list[dict[str, Any]], stream: bool) -> None:
    turns = [{"role": "user", "content": parts}]
    asked = {"model": "qwen3-omni", "input": turns, "max_output_tokens": 12, "instructions": "Be brief.", **DRAWN}
    if stream:
        events = list(client.responses.create(**asked, stream=True))
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        response = events[-1].response
        assert text == response.output_text
    else:
        response = client.responses.create(**asked)
    assert response.output_text == chat_text(client, [{"role": "system", "content": "Be brief."}, *turns], **DRAWN)
    assert response.usage
    assert response.usage.output_tokens <= 12


def test_a_conversation_goes_on_with_the_output_of_responses(client: openai.OpenAI) -> None:
    turns: list[Any] = [{"role": "user", "content": "Tell me about the sea."}]
    first = client.responses.create(model="qwen3-omni", input=turns, max_output_tokens=8)
    turns += [*first.output, {"role": "user", "content": "More."}]
    second = client.responses.create(model="qwen3-omni", input=turns, max_output_tokens=8)
    said = [{"role": role, "content": text} for role, text in
            (("user", "Tell me about the sea."), ("assistant", first.output_text), ("user", "More."))]  # fmt: skip
    assert second.output_text == chat_text(client, said, extra_body={"max_tokens": 8})
    assert second.usage
    assert second.usage.input_tokens_details.cached_tokens > 10


def test_a_cut_response_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="qwen3-omni", input="Hi", max_output_tokens=3, extra_body={"ignore_eos": True}
    )
    assert (response.status, response.usage and response.usage.output_tokens) == ("incomplete", 3)


def asking(part: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [TEXT, part]}]}


BROKEN = "data:image/png;base64,iVBORw0KGgoAAAAN"
BAD = {
    "a broken picture": Bad(asking({"type": "input_image", "image_url": BROKEN}), "invalid_image",
                            "input[0].content[1].image_url", "image"),
    "a broken file": Bad(asking({"type": "input_file", "file_data": "data:audio/wav;base64,AAAA"}), "invalid_audio",
                         "input[0].content[1].file_data", "audio"),
    "a missing file": Bad(asking({"type": "input_image", "image_url": "no.png"}), "media_not_found",
                          "input[0].content[1].image_url", "readable"),
    "a file outside": Bad(asking({"type": "input_image", "image_url": "/etc/passwd"}), "media_not_allowed",
                          "input[0].content[1].image_url", "image_url"),
    "a private address": Bad(asking({"type": "input_image", "image_url": "http://127.0.0.1/a"}), "media_not_allowed",
                             "input[0].content[1].image_url", "image_url"),
    "too many media": Bad({"input": [{"role": "user", "content": [PICTURE] * 7}]}, "too_many_media",
                          "input[0].content[6].image_url", "6"),
    "too long": Bad({"input": "word " * 60_000}, "context_length_exceeded", "input", "tokens"),
    "another type": Bad(b"{}", "invalid_content_type", None, "application/json", 415, {"content-type": "text/plain"}),
    "no JSON": Bad(b"{", "invalid_json", None, "JSON"),
    "no such field": Bad({"input": "x", "inptu": "y"}, "unknown_parameter", "inptu", "did you mean 'input'"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_is_explained(server: Server, bad: Bad, stream: bool) -> None:
    payload = bad.payload() if isinstance(bad.body, bytes) else json.dumps(bad.body | {"stream": stream}).encode()
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", "/v1/responses", payload, bad.headers)
        response = connection.getresponse()
        found = json.loads(response.read())["error"]
    finally:
        connection.close()
    assert (response.status, found["code"], found["param"]) == (bad.status, bad.code, bad.param), found
    assert bad.message in found["message"]


def test_the_server_still_answers(client: openai.OpenAI) -> None:
    response = client.responses.create(model="qwen3-omni", input="Hi", max_output_tokens=2)
    assert response.status in ("completed", "incomplete")
