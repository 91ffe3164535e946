"""A body of the Responses API becomes the chat request that asks for the same answer, or an error about the wrong
field.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.api.conversion import convert
from gateway.api.responses_api.reading import Wanted, read
from gateway.api.responses_api.schema import IGNORED, REFUSED, SAME_IN_CHAT, ResponsesRequest
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError
from stages.messages import ChatRequest, MediaRef, Text
from tests.gateway import json_bodies

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object", "default": None}}
NAMED = {"type": "function", "name": "f"}
PICTURE = "data:image/png;base64,iVBORw=="
LIMITS = Limits()


def parse(data: bytes, limits: Limits = LIMITS) -> Wanted:
    return read(json_bodies.read(data, limits), limits)


def ask(**fields: Any) -> bytes:
    return json.dumps({"input": "Hello?", **fields}).encode()


def items(*sent: Any) -> bytes:
    return ask(input=list(sent))


def user(*parts: Any) -> bytes:
    return items({"role": "user", "content": list(parts)})


def chat(data: bytes) -> ChatRequest:
    wanted = parse(data)
    try:
        return convert(wanted.chat, None, LIMITS)[0]
    except OmniError as error:
        raise OmniError(wanted.places.error(error.info)) from error


def turns(data: bytes) -> list[tuple[str, list[Any]]]:
    return [
        (turn.role, [part.text if isinstance(part, Text) else part for part in turn.content])
        for turn in chat(data).turns
    ]


GOOD = [
    ask(),
    ask(input=""),
    ask(model="gpt-5", store=True, background=False, tools=[], tool_choice="auto", truncation="disabled"),
    ask(instructions=None, temperature=None, unknown=None),
    ask(text={"format": {"type": "text"}, "verbosity": "low"}, reasoning={"effort": "low", "summary": "auto"}),
    ask(include=["message.output_text.logprobs", "reasoning.encrypted_content"], top_logprobs=20),
    ask(metadata={"k" * 64: "v" * 512}),
    ask(stream=True, stream_options={"include_obfuscation": False}),
    ask(max_output_tokens=16.0, parallel_tool_calls=False, **{name: {"any": 1} for name in IGNORED}),
    items({"role": "user", "content": "a"}),
    items({"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": "a"}),
    user({"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": PICTURE, "detail": "auto"}),
    user({"type": "input_image", "image_url": PICTURE, "file_id": None}),
    user({"type": "input_file", "file_data": PICTURE, "filename": "a.png"}),
    user({"type": "input_file", "file_url": PICTURE}),
    user({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}),
    user({"type": "video_url", "video_url": {"url": "a.mp4"}}, {"type": "image_url", "image_url": "a.png"}),
    items(
        {"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}]},
        {"role": "user", "content": "b"},
    ),
    items(
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}, {"role": "user", "content": "a"}
    ),
    items({"role": "user", "content": "a"}, {"type": "function_call_output", "call_id": "c", "output": "3"}),
    items({"role": "user", "content": "a"}, CALL, {**CALL, "id": "fc_1", "status": "completed"}),
    ask(tools=[TOOL], tool_choice="required", parallel_tool_calls=False),
    ask(tools=[TOOL], tool_choice={"type": "function", "name": "f"}),
    ask(tools=[TOOL], tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [NAMED]}),
    ask(tools=[{"type": "function", "name": "f", "description": None, "parameters": None, "strict": None}]),
    ask(tools=[{"name": "f"}], tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{"name": "f"}]}),
    items(
        {"type": "reasoning", "content": [{"text": "hm"}], "summary": [{"text": "h"}]}, {"role": "user", "content": ""}
    ),
    ask(text={"format": {"type": "json_object"}}),
    ask(text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}),
    ask(text={"format": None}),
]

WRONG = [
    (b"{", None, "invalid_json"),
    (b"[]", None, "invalid_json"),
    (b'"x"', None, "invalid_json"),
    (b"{}", "input", "missing_required_parameter"),
    (ask(input=None), "input", "missing_required_parameter"),
    (ask(input=5), "input", "invalid_value"),
    (ask(input={}), "input", "invalid_value"),
    (ask(input=[]), "input", "invalid_value"),
    (items("a"), "input[0]", "invalid_value"),
    (items({}), "input[0].type", "missing_required_parameter"),
    (items({"role": "user"}), "input[0].content", "missing_required_parameter"),
    (items({"role": "tool", "content": "a"}), "input[0].role", "invalid_value"),
    (items({"role": "user", "content": 5}), "input[0].content", "invalid_value"),
    (items({"role": "user", "content": "a", "mood": "glad"}), "input[0].mood", "unknown_parameter"),
    (items({"type": "item_reference", "id": "msg_1"}), "input[0].type", "invalid_value"),
    (items({"type": "web_search_call", "id": "ws_1"}), "input[0].type", "invalid_value"),
    (items({"type": "reasoning", "summary": []}), "input", "invalid_value"),
    (items({"type": "reasoning", "summary": "x"}), "input[0].summary", "invalid_value"),
    (items({"type": "reasoning", "content": [{"type": "text", "text": "x"}]}), "input[0].content[0].type",
     "invalid_value"),
    (items({"type": "reasoning", "content": [{"type": "reasoning_text"}]}), "input[0].content[0].text",
     "missing_required_parameter"),
    (items({"type": "reasoning", "summary": [{"type": "summary", "text": "x"}]}), "input[0].summary[0].type",
     "invalid_value"),
    (items({"type": "function_call", "name": "f", "arguments": ""}), "input[0].call_id", "missing_required_parameter"),
    (items({**CALL, "call_id": ""}), "input[0].call_id", "invalid_value"),
    (items({**CALL, "arguments": {}}), "input[0].arguments", "invalid_value"),
    (items({**CALL, "arguments": "x"}), "input[0].arguments", "invalid_value"),
    (items({"role": "user", "content": "a"}, CALL, {**CALL, "arguments": "[]"}), "input[2].arguments", "invalid_value"),
    (items({**CALL, "name": "no name"}), "input[0].name", "invalid_value"),
    (items({"type": "function_call_output", "call_id": "c"}), "input[0].output", "missing_required_parameter"),
    (items({"type": "function_call_output", "call_id": "c", "output": {}}), "input[0].output", "invalid_value"),
    (user({"type": "input_video", "video_url": "a"}), "input[0].content[0].type", "invalid_value"),
    (user({"type": "input_text"}), "input[0].content[0].text", "missing_required_parameter"),
    (user({"type": "input_text", "text": 5}), "input[0].content[0].text", "invalid_value"),
    (user("a"), "input[0].content[0]", "invalid_value"),
    (user({"type": "input_image"}), "input[0].content[0].image_url", "missing_required_parameter"),
    (user({"type": "input_image", "file_id": "f"}), "input[0].content[0].file_id", "unsupported_parameter"),
    (user({"type": "input_file", "file_id": "f"}), "input[0].content[0].file_id", "unsupported_parameter"),
    (user({"type": "input_file", "filename": "f"}), "input[0].content[0].file_data", "missing_required_parameter"),
    (user({"type": "input_file", "file_data": "a", "file_url": "b"}), "input[0].content[0].file_url", "invalid_value"),
    (user({"type": "input_audio", "input_audio": {}}), "input[0].content[0].input_audio.data",
     "missing_required_parameter"),
    (ask(instructions=5), "instructions", "invalid_value"),
    (ask(max_output_tokens=0), "max_output_tokens", "invalid_value"),
    (ask(max_output_tokens=1.5), "max_output_tokens", "invalid_value"),
    (ask(max_tokens=5), "max_tokens", "unknown_parameter"),
    (ask(temperature=3), "temperature", "invalid_value"),
    (ask(temperature="1"), "temperature", "invalid_value"),
    (ask(top_p=-1), "top_p", "invalid_value"),
    (ask(top_logprobs=21), "top_logprobs", "invalid_value"),
    (ask(include=["everything"]), "include[0]", "invalid_value"),
    (ask(include="everything"), "include", "invalid_value"),
    (ask(metadata={"a": 1}), "metadata", "invalid_value"),
    (ask(metadata={str(i): "" for i in range(17)}), "metadata", "invalid_value"),
    (ask(metadata={"a": "v" * 513}), "metadata", "invalid_value"),
    (ask(text={"format": {"type": "xml"}}), "text.format.type", "invalid_value"),
    (ask(text={"format": {}}), "text.format.type", "missing_required_parameter"),
    (ask(text={"format": {"type": "json_schema", "name": "n"}}), "text.format.schema", "missing_required_parameter"),
    (ask(text={"format": {"type": "json_object", "schema": {}}}), "text.format.schema", "unknown_parameter"),
    (ask(text={"verbosity": "loud"}), "text.verbosity", "invalid_value"),
    (ask(reasoning={"effort": "huge"}), "reasoning.effort", "invalid_value"),
    (ask(reasoning={"summary": "long"}), "reasoning.summary", "invalid_value"),
    (ask(thinking_token_budget=-1), "thinking_token_budget", "invalid_value"),
    (ask(thinking_token_budget=1, thinking_budget=2), "thinking_budget", "invalid_value"),
    (ask(reasoning={"efort": "low"}), "reasoning.efort", "unknown_parameter"),
    (ask(stream="yes"), "stream", "invalid_value"),
    (ask(stream_options={"include_usage": True}), "stream_options.include_usage", "unknown_parameter"),
    (ask(n=2), "n", "unknown_parameter"),
    (ask(tools=[{"type": "function"}]), "tools[0].name", "missing_required_parameter"),
    (ask(tools=[{"type": "function", "function": {"name": "f"}}]), "tools[0].function", "unknown_parameter"),
    (ask(tools=[{"type": "web_search"}]), "tools[0].type", "invalid_value"),
    (ask(tools=[TOOL, TOOL]), "tools[1].name", "invalid_value"),
    (ask(tools=[{**TOOL, "parameters": "x"}]), "tools[0].parameters", "invalid_value"),
    (ask(tool_choice="required"), "tool_choice", "invalid_value"),
    (ask(tools=[TOOL], tool_choice="sometimes"), "tool_choice", "invalid_value"),
    (ask(tools=[TOOL], tool_choice={"type": "function", "name": "g"}), "tool_choice.name", "invalid_value"),
    (ask(tools=[TOOL], tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{**NAMED, "name": "g"}]}),
     "tool_choice.tools[0].name", "invalid_value"),
    (ask(background=True), "background", "unsupported_parameter"),
    (ask(background=0), "background", "unsupported_parameter"),
    (ask(conversation="conv_1"), "conversation", "unsupported_parameter"),
    (ask(previous_response_id="resp_1"), "previous_response_id", "unsupported_parameter"),
    (ask(prompt={"id": "p"}), "prompt", "unsupported_parameter"),
    (ask(truncation="auto"), "truncation", "unsupported_parameter"),
    (ask(mm_processor_kwargs={"min_pixels": 9, "max_pixels": 8}), "mm_processor_kwargs.min_pixels", "invalid_value"),
    (ask(chat_template_kwargs={"continue_final_message": True}), "chat_template_kwargs.continue_final_message",
     "unsupported_parameter"),
]  # fmt: skip


@pytest.mark.parametrize("data", GOOD)
def test_what_the_api_describes_is_taken(data):
    assert chat(data).turns


@pytest.mark.parametrize(("data", "param", "code"), WRONG)
def test_what_is_wrong_is_named(data, param, code):
    with pytest.raises(OmniError) as caught:
        chat(data)
    info = caught.value.info
    assert (info.status, info.param, info.code) == (400, param, code)
    assert param is None or param in info.message


def test_instructions_come_first():
    data = ask(
        instructions="Be brief.", input=[{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}]
    )
    assert turns(data) == [("system", ["Be brief."]), ("system", ["a"]), ("user", ["b"])]


def test_items_become_turns_and_a_summary_is_left_out():
    data = items(
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": PICTURE}],
        },
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b"}, {"type": "refusal", "refusal": "c"}]},
        {"type": "function_call_output", "call_id": "x", "output": [{"type": "input_text", "text": "d"}]},
    )
    assert turns(data) == [("user", ["a", MediaRef(0)]), ("assistant", ["b", "c"]), ("tool", ["d"])]


@pytest.mark.parametrize(
    ("part", "field", "kind"),
    [
        ({"type": "input_image", "image_url": "a.png"}, "image_url", "image"),
        ({"type": "input_audio", "input_audio": {"data": "UklGRg=="}}, "input_audio.data", "audio"),
        ({"type": "input_file", "file_data": base64.b64encode(b"\x89PNG").decode()}, "file_data", "image"),
        ({"type": "input_file", "file_url": PICTURE}, "file_data", "image"),
        ({"type": "video_url", "video_url": {"url": "a.mp4"}}, "video_url.url", "video"),
    ],
)
@pytest.mark.parametrize("output", [False, True])
def test_media_keep_the_names_of_their_fields(part, field, kind, output):
    item = {"type": "function_call_output", "call_id": "c", "output": [part]}
    first = {"role": "user", "content": "a"}
    wanted = parse(ask(input=[first, item if output else {"role": "user", "content": [part]}], instructions="x"))
    [source] = map(wanted.places.source, convert(wanted.chat, None, LIMITS)[1])
    assert (source.param, source.kind) == (f"input[1].{'output' if output else 'content'}[0].{field}", kind)


def test_long_strings_are_media_or_text():
    picture = "data:image/png;base64," + base64.b64encode(bytes(30_000)).decode()
    text, secret = "ab" * 20_000, "x" * 40_000
    data = ask(
        instructions=text,
        user=secret,
        input=[
            {"type": "reasoning", "summary": [], "encrypted_content": secret},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": text}, {"type": "input_image", "image_url": picture}],
            },
        ],
    )
    body = json_bodies.read(data)
    wanted = read(body, LIMITS)
    chat, [source] = convert(wanted.chat, None, LIMITS, body.strings)
    assert [turn.content[0] for turn in chat.turns] == [Text(text), Text(text)]
    assert source.value.content.decode() == picture
    assert wanted.request.instructions == text


def test_too_much_text_is_refused():
    limits = Limits(text_bytes=100_000)
    with pytest.raises(OmniError) as caught:
        parse(user({"type": "input_text", "text": "a" * 60_000}, {"type": "input_text", "text": "b" * 60_000}), limits)
    assert (caught.value.info.status, caught.value.info.param) == (413, "input[0].content[1].text")


def test_the_limit_of_the_operator_is_named_by_the_clients_field():
    wanted = parse(ask(max_output_tokens=50))
    with pytest.raises(OmniError) as caught:
        convert(wanted.chat, None, Limits(output_tokens=10))
    info = wanted.places.error(caught.value.info)
    assert info.param == "max_output_tokens"
    assert "'max_output_tokens'" in info.message


def test_calls_join_the_answer_before_them():
    data = items(
        {"role": "assistant", "content": "a"}, CALL, {**CALL, "name": "g"},
        {"type": "function_call_output", "call_id": "c", "output": "3"}, CALL,
    )  # fmt: skip
    request = chat(data)
    assert turns(data) == [("assistant", ["a"]), ("tool", ["3"]), ("assistant", [""])]
    assert [[call.name for call in turn.calls] for turn in request.turns] == [["f", "g"], [], ["f"]]


THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
USER = {"role": "user", "content": "u"}


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        ([USER, THOUGHT, {"role": "assistant", "content": "a"}], [("user", None, 0), ("assistant", "hm", 0)]),
        ([USER, THOUGHT, CALL, CALL], [("user", None, 0), ("assistant", "hm", 2)]),
        ([THOUGHT, {"role": "assistant", "content": "a"}, CALL], [("assistant", "hm", 1)]),
        ([THOUGHT, THOUGHT, CALL], [("assistant", "hmhm", 1)]),
        ([THOUGHT, USER], [("assistant", "hm", 0), ("user", None, 0)]),
        ([CALL, THOUGHT, CALL], [("assistant", None, 1), ("assistant", "hm", 1)]),
        ([USER, {"type": "reasoning", "summary": [], "content": None}], [("user", None, 0)]),
    ],
)
def test_reasoning_belongs_to_the_answer_after_it(sent, wanted):
    found = [(turn.role, turn.reasoning, len(turn.calls)) for turn in chat(items(*sent)).turns]
    assert found == wanted


def test_an_answer_after_reasoning_keeps_the_name_of_its_field():
    data = items(THOUGHT, {"role": "assistant", "content": [{"type": "input_image", "image_url": "a.png"}]})
    wanted = parse(data)
    [source] = map(wanted.places.source, convert(wanted.chat, None, LIMITS)[1])
    assert source.param == "input[1].content[0].image_url"


def test_the_effort_is_that_of_chat():
    assert chat(ask(reasoning={"effort": "none"})).thinking is False
    assert chat(ask(reasoning={"effort": "max"})).thinking is None


def test_tools_are_those_of_chat():
    request = chat(ask(tools=[{**TOOL, "strict": True}], tool_choice={"type": "function", "name": "f"}))
    [tool] = request.tools.tools
    assert (tool.name, tool.strict, request.tools.required) == ("f", True, True)
    assert json.loads(tool.parameters) == TOOL["parameters"]


def test_a_format_is_that_of_chat():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    grammar = chat(ask(text={"format": {"type": "json_schema", "name": "n", "schema": schema}})).thinker.grammar
    assert (grammar.kind, json.loads(grammar.source)) == ("json_schema", schema)
    assert chat(ask(text={"format": {"type": "text"}})).thinker.grammar is None


# --- every field acts -------------------------------------------------------------------------------------------------

# For each field, a value that differs from its default.
VALUES: dict[str, Any] = {
    "input": "Goodbye.",
    "instructions": "Be brief.",
    "max_output_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_logprobs": 3,
    "tools": [TOOL],
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "text": {"format": {"type": "json_object"}},
    "include": ["message.output_text.logprobs"],
    "stream": True,
    "seed": 5,
    "top_k": 5,
    "min_p": 0.5,
    "repetition_penalty": 1.5,
    "presence_penalty": 1,
    "frequency_penalty": 1,
    "stop": "x",
    "ignore_eos": True,
    "use_audio_in_video": True,
    "mm_processor_kwargs": {"fps": 1},
    "chat_template_kwargs": {"enable_thinking": False},
    "thinking_token_budget": 5,
    "thinking_budget": 5,
    "reasoning": {"effort": "none"},
}
# Fields that are only repeated in the response (see `test_responses`), and fields that are documented to have no
# effect.
WITHOUT = {"model", "metadata", "stream_options"}
NEEDS = {"tool_choice": {"tools": [TOOL]}, "parallel_tool_calls": {"tools": [TOOL]}}


def test_no_field_is_forgotten_here():
    assert VALUES.keys() | WITHOUT == {*ResponsesRequest.__struct_fields__}
    assert {*SAME_IN_CHAT} < VALUES.keys()
    assert not {*ResponsesRequest.__struct_fields__} & {*IGNORED, *REFUSED}


@pytest.mark.parametrize("field", VALUES)
def test_a_field_has_an_effect(field):
    needed = NEEDS.get(field, {})
    assert chat(ask(**needed, **{field: VALUES[field]})) != chat(ask(**needed))
