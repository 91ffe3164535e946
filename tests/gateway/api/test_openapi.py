"""The OpenAPI document matches the code: accepted bodies, answers and endpoints."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import jsonschema
import pytest

from gateway.api.openapi import CHAT_ERRORS, openapi_document
from gateway.api.schema import EXTRA, ChatCompletionRequest
from gateway.api.unserved_fields import IGNORED, REFUSED
from omni_pipeline import __version__
from omni_pipeline.errors import ErrorInfo, OmniError
from omni_pipeline.wire.messages import StageStats
from tests.gateway.api.responses_api import test_reading as responses
from tests.gateway.api.test_validation import GOOD, WRONG, body, messages
from tests.gateway.json_bodies import parse
from tests.gateway.scripted import HELLO, ScriptedPipeline, serving, token, tone

DOCUMENT = json.loads(json.dumps(openapi_document(with_keys=False)))
API = (Path(__file__).parents[3] / "docs" / "api.md").read_text()


def validator(schema: dict) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def component(name: str) -> jsonschema.Draft202012Validator:
    return validator({"$ref": f"#/components/schemas/{name}"})


REQUEST = component("ChatCompletionRequest")


def test_every_schema_is_one():
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert references == DOCUMENT["components"]["schemas"].keys()


def test_it_names_every_field_that_is_known():
    described = DOCUMENT["components"]["schemas"]["ChatCompletionRequest"]
    assert described["properties"].keys() == {*ChatCompletionRequest.__struct_fields__, *IGNORED, *REFUSED, EXTRA}
    assert described["additionalProperties"] == {"type": "null"}


@pytest.mark.parametrize("fields", GOOD)
def test_what_is_taken_conforms(fields):
    REQUEST.validate(json.loads(body(**fields)))


@pytest.mark.parametrize("fields", [{name: {"any": 1}} for name in sorted(IGNORED)] + [dict.fromkeys(REFUSED)])
def test_foreign_fields_that_are_taken_conform(fields):
    REQUEST.validate(json.loads(body(**fields)))


# Bodies of `WRONG` in which every single field is valid; only the combination is wrong.
CONTRADICTIONS = [
    body(max_completion_tokens=3, max_tokens=4),
    body(min_tokens=5, max_tokens=4),
    body(top_logprobs=2),
    body(stream_options={"include_usage": True}),
    body(video_min_pixels=200, video_max_pixels=100),
    body(extra_body={"top_k": 1}, top_k=2),
    body(extra_body={"images": ["x"]}, images=["y"]),
    body(mm_processor_kwargs={"fps": 1}, video_fps=2),
    body(mm_processor_kwargs={"use_audio_in_video": False}, use_audio_in_video=True),
    body(mm_processor_kwargs={"min_pixels": 200}, video_max_pixels=100),
    messages({"role": "assistant"}),
    messages({"role": "assistant", "audio": {"data": "AAAA"}}),
    body(stream=True, audio={"format": "mp3", "chunks": "files"}),
    body(n=2, modalities=["text", "audio"]),
    body(n=2, modalities=["audio"]),
    body(n=2, extra_body={"n": 3}),
    body(structured_outputs={"regex": "a", "json_object": True}),
    body(regex="a", guided_regex="b"),
    body(thinking_budget=1, thinking_token_budget=2),
]


TALK = [{"role": "user", "content": "Hello?"}]


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        ({"extra_body": {"messages": TALK}}, True),
        ({"messages": None, "extra_body": {"messages": TALK, "top_k": 1}}, True),
        ({"messages": TALK, "extra_body": {"messages": TALK}}, True),
        ({"messages": TALK, "extra_body": {"messages": None}}, True),
        ({"messages": TALK, "extra_body": None}, True),
        ({"messages": None, "extra_body": {"messages": None}}, False),
        ({"extra_body": {"messages": []}}, False),
        ({"extra_body": {"top_k": 1}}, False),
        ({"messages": None}, False),
        ({}, False),
    ],
)
def test_messages_are_required_here_or_in_the_extra_body(sent, taken):
    assert REQUEST.is_valid(sent) == taken
    if taken:
        assert parse(json.dumps(sent).encode()).messages[0].content == "Hello?"
    else:
        with pytest.raises(OmniError):
            parse(json.dumps(sent).encode())


@pytest.mark.parametrize("data", [data for data, _, _ in WRONG])
def test_what_is_refused_does_not_conform_unless_fields_contradict_each_other(data):
    assert REQUEST.is_valid(json.loads(data)) == (data in CONTRADICTIONS)


@pytest.mark.parametrize("with_keys", [False, True])
async def test_it_is_served(with_keys):
    async with serving(api_keys=["k"] if with_keys else []) as served:
        status, document = await served.get("/openapi.json")
    assert (status, document["openapi"], document["info"]["version"]) == (200, "3.1.0", __version__)
    assert document == json.loads(json.dumps(openapi_document(with_keys=with_keys)))
    assert ("securitySchemes" in document["components"]) == with_keys


async def test_it_describes_every_endpoint():
    async with serving() as served:
        _, index = await served.get("/")
    described = {f"{method.upper()} {path}" for path, item in DOCUMENT["paths"].items() for method in item}
    assert described == set(index["endpoints"])


def answered(path: str, method: str, status: int) -> jsonschema.Draft202012Validator:
    """The schema of the body that `path` sends with `status`."""
    response = DOCUMENT["paths"][path][method]["responses"][str(status)]
    return validator(response["content"]["application/json"]["schema"])


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/models/tiny-omni", "/v1/models/x"])
async def test_what_is_answered_conforms(path):
    async with serving() as served:
        served.pipeline.stats = {"thinker": StageStats(live_requests=2, received=7)}
        status, found = await served.get(path)
    template = "/v1/models/{model}" if path.startswith("/v1/models/") else path
    answered(template, "get", status).validate(found)


async def test_health_conforms_while_there_is_a_problem():
    async with serving() as served:
        await served.ready()
        served.pipeline.problem = "a worker is gone"
        status, found = await served.get("/health")
    answered("/health", "get", status).validate(found)
    assert status == 503


@pytest.mark.parametrize(
    "fields",
    [{}, {"modalities": ["text", "audio"]}, {"modalities": ["audio"]}, {"logprobs": True}, {"return_token_ids": True},
     {"n": 3}, {"temperature": 9}, {"model": "x", "n": 99}],
)  # fmt: skip
async def test_whole_answers_and_errors_conform(fields):
    async with serving(ScriptedPipeline(["Hel", "lo"], [tone(100)]), speaks=True) as served:
        status, found = await served.post(HELLO | fields)
    assert status == (400 if fields.get("n") == 99 or fields.get("temperature") else 200)
    answered("/v1/chat/completions", "post", status).validate(found)


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("modalities", [["text"], ["text", "audio"], ["audio"]], ids="+".join)
async def test_every_event_conforms(modalities, usage, failing):
    pipeline = ScriptedPipeline()
    async with serving(pipeline, speaks=True) as served:
        request = HELLO | {"modalities": modalities, "stream": True, "stream_options": {"include_usage": usage}}
        reader, writer = await served.connect(request)
        request_id = await pipeline.submitted.get()
        pipeline.voice = [tone(100)]
        if failing:
            pipeline.say(request_id, "Hel")
            pipeline.fail(request_id, ErrorInfo(status=503, message="Lost."))
        else:
            pipeline.say_all(request_id, ["Hel", "lo"])
        text = (await reader.readuntil(b"\r\n0\r\n")).decode()
        writer.close()
    *events, last = [json.loads(event) for event in re.findall(r"data: (\{.*\})", text)]
    for event in events:
        component("CompletionChunk").validate(event)
    component("ErrorBody" if failing else "CompletionChunk").validate(last)
    assert ("[DONE]" in text) != failing


def test_the_statuses_of_errors_are_those_of_the_documentation():
    table = API[API.index("| status | code | when |") :]
    documented = {int(status) for status in re.findall(r"^\| (\d{3}) \|", table, re.MULTILINE)}
    assert documented == {*CHAT_ERRORS, 405, 426}  # 426: only for realtime sessions


# --- the Responses API ------------------------------------------------------------------------------------------------

RESPONSES_REQUEST = component("ResponsesRequest")
# Bodies in which every single field is valid; only the combination is wrong.
RESPONSES_CONTRADICTIONS = [
    responses.items({"type": "reasoning", "summary": []}),
    responses.items({**responses.CALL, "arguments": "x"}),
    responses.items({"role": "user", "content": "a"}, responses.CALL, {**responses.CALL, "arguments": "[]"}),
    *[data for data, param, _ in responses.WRONG if (param or "").endswith("].name") and b'"g"' in data],
    responses.ask(tools=[responses.TOOL], tool_choice={"type": "function", "name": "g"}),
    responses.ask(tools=[responses.TOOL, responses.TOOL]),
    responses.ask(tool_choice="required"),
    responses.user({"type": "input_file", "filename": "f"}),
    responses.user({"type": "input_file", "file_data": "a", "file_url": "b"}),
    responses.ask(mm_processor_kwargs={"min_pixels": 9, "max_pixels": 8}),
    responses.ask(thinking_token_budget=1, thinking_budget=2),
]


@pytest.mark.parametrize("data", responses.GOOD)
def test_a_request_for_a_response_that_is_taken_conforms(data):
    RESPONSES_REQUEST.validate(json.loads(data))


@pytest.mark.parametrize("data", [data for data, _, code in responses.WRONG if code != "invalid_json"])
def test_a_request_for_a_response_that_is_refused_does_not_conform(data):
    assert RESPONSES_REQUEST.is_valid(json.loads(data)) == (data in RESPONSES_CONTRADICTIONS)


@pytest.mark.parametrize(("fields", "expected"), [({}, 200), ({"top_logprobs": 1}, 200), ({"temperature": 9}, 400)])
async def test_whole_responses_and_errors_conform(fields, expected):
    async with serving() as served:
        asked = json.loads(responses.ask(**fields))
        async with served.session.post(f"{served.url}/v1/responses", json=asked) as response:
            found = await response.json()
    assert response.status == expected
    answered("/v1/responses", "post", expected).validate(found)


@pytest.mark.parametrize("failing", [False, True])
async def test_every_event_of_a_response_conforms(failing):
    pipeline = ScriptedPipeline()
    content = DOCUMENT["paths"]["/v1/responses"]["post"]["responses"]["200"]["content"]
    event = validator(content["text/event-stream"]["x-event"])
    async with serving(pipeline) as served:
        asked = asyncio.create_task(
            served.session.post(f"{served.url}/v1/responses", json=json.loads(responses.ask(stream=True)))
        )
        request_id = await pipeline.submitted.get()
        pipeline.say(request_id, "Hel", [token("Hel")])
        if failing:
            pipeline.fail(request_id, ErrorInfo(status=503, message="Lost."))
        else:
            pipeline.finish(request_id)
        text = await (await asked).text()
    events = [json.loads(data) for data in re.findall(r"data: (\{.*\})", text)]
    assert len(events) > 5
    for found in events:
        event.validate(found)
