"""Every body from the server has the structure that OpenAI's package declares. The only additional fields are
documented in docs/api.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
from openai.types import ErrorObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionAudio, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from gateway.api.schema import ChatCompletionRequest
from gateway.api.unserved_fields import IGNORED, REFUSED
from omni_pipeline.errors import ErrorInfo
from tests.gateway.answers.test_chat import events_of
from tests.gateway.scripted import HELLO, ScriptedPipeline, serving, token, tone

TEXT = HELLO | {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}
MODALITIES = [["text"], ["text", "audio"], ["audio"]]
FORMATS = ["wav", "pcm16", "pcm", "flac", "mp3", "opus", "aac"]

# The fields that we add to OpenAI's answers, by path; all of them are in docs/api.md.
OURS = {
    "choices.token_ids",
    "usage.prompt_tokens_details.image_tokens",
    "usage.prompt_tokens_details.video_tokens",
    "usage.completion_tokens_details.text_tokens",
}
OURS_SPOKEN = {"choices.message.audio.finish_reason"}
OURS_STREAMED = OURS | {
    "modality",
    "audio_metadata",
    # OpenAI streams these fields too, but OpenAI's package does not declare them.
    "choices.delta.audio",
}


def speaking() -> ScriptedPipeline:
    return ScriptedPipeline(["Hel", "lo"], [tone(4000), tone(2000, 4000)])


def checked(kind: type[pydantic.BaseModel], body: Any) -> set[str]:
    """The paths of the fields in `body` that the class `kind` does not declare. Apart from these fields, `body` must
    conform to `kind` without any conversion.
    """
    return set(_undeclared(kind.model_validate(body, strict=True), ""))


def _undeclared(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _undeclared(item, path)
    if isinstance(value, pydantic.BaseModel):
        for name in value.model_extra or {}:
            yield f"{path}.{name}".lstrip(".")
        for name in type(value).model_fields:
            yield from _undeclared(getattr(value, name), f"{path}.{name}".lstrip("."))


@pytest.mark.parametrize("modalities", MODALITIES, ids="+".join)
@pytest.mark.parametrize("audio_format", FORMATS)
async def test_a_whole_answer(modalities, audio_format):
    async with serving(speaking(), speaks=True) as served:
        status, body = await served.post(HELLO | {"modalities": modalities, "audio": {"format": audio_format}})
    assert status == 200
    assert checked(ChatCompletion, body) - OURS_SPOKEN == OURS - {"choices.token_ids"}
    if "audio" in modalities:
        assert checked(ChatCompletionAudio, body["choices"][0]["message"]["audio"]) == {"finish_reason"}


async def test_a_whole_answer_with_logprobs_and_ids():
    pipeline = ScriptedPipeline()
    async with serving(pipeline) as served:
        asked = asyncio.create_task(served.post(TEXT))
        request_id = await pipeline.submitted.get()
        pipeline.say(request_id, "H", [token("H", -0.25, (("J", -2.0),)), token("é", float("-inf"))])
        pipeline.finish(request_id, "length")
        _, body = await asked
    assert checked(ChatCompletion, body) == OURS


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("modalities", MODALITIES, ids="+".join)
async def test_a_streamed_answer(modalities, usage):
    async with serving(speaking(), speaks=True) as served:
        options = {"stream_options": {"include_usage": usage}}
        *chunks, done = await events_of(served, TEXT | options | {"modalities": modalities})
    assert done == "[DONE]"
    added = set().union(*(checked(ChatCompletionChunk, chunk) for chunk in chunks))
    unused = {path for path in OURS if path.startswith("usage") and not usage}
    if "audio" not in modalities:
        unused |= {"choices.delta.audio", "audio_metadata"}
    assert added == OURS_STREAMED - unused
    joined: dict[str, Any] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            joined |= choice["delta"].get("audio", {})
    if "audio" in modalities:
        assert checked(ChatCompletionAudio, joined) == {"finish_reason"}, "the pieces together are OpenAI's audio"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/chat/completions", b"{"),
        ("POST", "/v1/chat/completions", b"{}"),
        ("POST", "/v1/nothing", b""),
        ("GET", "/v1/models/gpt-5", None),
        ("DELETE", "/v1/models", None),
    ],
)
async def test_an_error(method, path, body):
    async with serving() as served:
        headers = {"Content-Type": "application/json"}
        async with served.session.request(method, served.url + path, data=body, headers=headers) as response:
            assert response.status in (400, 404, 405)
            found = await response.json()
    assert found.keys() == {"error"}
    assert checked(ErrorObject, found["error"]) == set()


async def test_an_error_within_a_stream():
    pipeline = ScriptedPipeline()
    async with serving(pipeline) as served:
        asked = asyncio.create_task(events_of(served, HELLO))
        request_id = await pipeline.submitted.get()
        pipeline.say(request_id, "Hel")
        pipeline.fail(request_id, ErrorInfo(status=503, message="Lost.", type="service_unavailable_error", code="lost"))
        *_, last = await asked
    assert checked(ErrorObject, last["error"]) == set()


async def test_the_list_of_models():
    async with serving() as served:
        _, found = await served.get("/v1/models")
    assert found["object"] == "list"
    assert checked(Model, found["data"][0]) == set()


def test_every_parameter_that_openai_declares_is_served_ignored_or_refused():
    known = {*ChatCompletionRequest.__struct_fields__, *IGNORED, *REFUSED}
    assert CompletionCreateParamsBase.__annotations__.keys() - known == set()
