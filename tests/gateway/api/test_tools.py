"""Tools and earlier calls are converted to the structures that the pipeline uses. If a tool or a call is wrong, the
error names the field.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.conversion import convert
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError
from stages.messages import ChatRequest, Text, Tool, ToolCall, ToolUse
from tests.gateway.api.test_openapi import REQUEST
from tests.gateway.json_bodies import parse

USER = {"role": "user", "content": "Hello?"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "default": None}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "The weather of a city", "parameters": SCHEMA}


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


def converted(**fields: Any) -> ChatRequest:
    body = json.dumps({"messages": [USER], **fields}).encode()
    return convert(parse(body), None, Limits())[0]


def refusal(**fields: Any) -> tuple[str | None, str | None, str]:
    with pytest.raises(OmniError) as caught:
        converted(**fields)
    info = caught.value.info
    assert info.status == 400
    return info.code, info.param, info.message


def answered(*calls: Any, **fields: Any) -> list[dict[str, Any]]:
    return [USER, {"role": "assistant", "tool_calls": list(calls), **fields}]


def called(arguments: Any = "{}", **fields: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}, **fields}


def test_a_tool_is_shown_to_the_model_as_it_was_sent_in_the_usual_order_of_fields() -> None:
    shuffled = {"function": {**dict(reversed(WEATHER.items())), "strict": True}, "type": "function"}
    [found] = converted(tools=[shuffled]).tools.tools
    shown = {"type": "function", "function": WEATHER}
    assert json.loads(found.definition) == shown
    assert [*json.loads(found.definition)["function"]] == ["name", "description", "parameters"]
    assert json.loads(found.parameters) == SCHEMA
    assert (found.name, found.strict) == ("get_weather", True)


@pytest.mark.parametrize(
    "parameters", [{"a": None}, {"b": [1.0, 1, 1e3, -0.0]}, {"c": "😀 <|im_end|>"}, {"é": {}}, {"d": "x" * 20_000}]
)
def test_a_schema_keeps_nulls_numbers_and_long_texts(parameters: dict[str, Any]) -> None:
    [found] = converted(tools=[tool(parameters=parameters)]).tools.tools
    assert repr(json.loads(found.parameters)) == repr(parameters)


def test_a_long_key_of_a_schema_is_kept() -> None:
    [found] = converted(tools=[tool(parameters={"k" * 20_000: {}})]).tools.tools
    assert json.loads(found.parameters) == {"k" * 20_000: {}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ToolUse([], ["f", "g"])),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, ToolUse([], ["f", "g"])),
        ({"parallel_tool_calls": False}, ToolUse([], ["f", "g"], parallel=False)),
        ({"tool_choice": "required"}, ToolUse([], ["f", "g"], required=True)),
        (
            {"tool_choice": {"type": "function", "function": {"name": "g"}}},
            ToolUse([], ["g"], required=True, parallel=False),
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": [tool(), tool()]},
                }
            },
            ToolUse([], ["f"], required=True),
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool(name="g")]}}},
            ToolUse([], ["g"]),
        ),
    ],
)
def test_a_choice_says_what_may_and_must_be_called(fields: dict[str, Any], expected: ToolUse) -> None:
    use = converted(tools=[tool(), tool(name="g")], **fields).tools
    assert [one.name for one in use.tools] == ["f", "g"]
    expected.tools = use.tools
    assert use == expected


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": []},
        {"tools": None},
        {"tools": [tool()], "tool_choice": "none"},
        {"tool_choice": "auto"},
        {"tool_choice": "none", "parallel_tool_calls": True},
    ],
)
def test_without_tools_nothing_is_called(fields: dict[str, Any]) -> None:
    assert converted(**fields).tools is None


def test_earlier_calls_follow_the_content_of_their_message() -> None:
    messages = [
        *answered(called('{"city": "K\\u00f6ln", "days": 1.0, "x": null}'), called(""), content="Let me see."),
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain"},
    ]
    turns = converted(messages=messages).turns
    assert turns[1].content == [Text("Let me see.")]
    assert turns[1].calls == [ToolCall("f", '{"city":"Köln","days":1.0,"x":null}'), ToolCall("f", "{}")]
    assert (turns[2].role, turns[2].content) == ("tool", [Text("Rain")])


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_an_answer_of_calls_needs_no_content(content: dict[str, Any]) -> None:
    turn = converted(messages=answered(called(), **content)).turns[1]
    assert turn.content == [Text("")]
    assert turn.calls == [ToolCall("f", "{}")]


def test_companions_of_calls_and_tools_have_no_effect() -> None:
    companions = {"cache_control": {"type": "ephemeral"}, "index": 0}
    assert converted(messages=answered(called(**companions))) == converted(messages=answered(called()))
    assert converted(tools=[tool() | {"cache_control": {}}]) == converted(tools=[tool()])


def allowed(mode: str, *tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


TOO_DEEP = '{"a":' * 65 + "1" + "}" * 65
MANY_VALUES = '{"a":[' + "0," * 60_000 + "0]}"
FIRST = "messages[1].tool_calls[0]"
ALLOWED = "tool_choice.allowed_tools"

INVALID: list[tuple[dict[str, Any], str]] = [
    ({"tools": {}}, "tools"),
    ({"tools": "f"}, "tools"),
    ({"tools": [None]}, "tools[0]"),
    ({"tools": ["f"]}, "tools[0]"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": 5, "function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [tool(name="")]}, "tools[0].function.name"),
    ({"tools": [tool(name="get weather")]}, "tools[0].function.name"),
    ({"tools": [tool(name='f"')]}, "tools[0].function.name"),
    ({"tools": [tool(name="f\n")]}, "tools[0].function.name"),
    ({"tools": [tool(name="wetter_für")]}, "tools[0].function.name"),
    ({"tools": [tool(name="f" * 129)]}, "tools[0].function.name"),
    ({"tools": [tool(name=5)]}, "tools[0].function.name"),
    ({"tools": [tool(description=5)]}, "tools[0].function.description"),
    ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
    ({"tools": [tool(parameters="{}")]}, "tools[0].function.parameters"),
    ({"tools": [tool(strict="yes")]}, "tools[0].function.strict"),
    ({"tools": [tool(name=f"f{index}") for index in range(129)]}, "tools"),
    ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": True}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": []}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": {"type": "auto"}}, "tool_choice.type"),
    ({"tools": [tool()], "tool_choice": allowed("auto")}, f"{ALLOWED}.tools"),
    ({"tools": [tool()], "tool_choice": allowed("none", tool())}, f"{ALLOWED}.mode"),
    ({"tools": [tool()], "tool_choice": allowed("auto", tool(name="a b"))}, f"{ALLOWED}.tools[0].function.name"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"messages": answered("f")}, FIRST),
    ({"messages": answered(called(type="custom"))}, f"{FIRST}.type"),
    ({"messages": answered(called(id=5))}, f"{FIRST}.id"),
    ({"messages": answered({"function": {"name": "a b", "arguments": "{}"}})}, f"{FIRST}.function.name"),
    ({"messages": answered(called({"a": 1}))}, f"{FIRST}.function.arguments"),
    ({"messages": answered(*[called()] * 129)}, "messages[1].tool_calls"),
    ({"messages": [USER, {"role": "function", "name": "f", "content": "x"}]}, "messages[1].role"),
]
UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function", "name": "f", "function": {"name": "f"}}]}, "tools[0].name"),
    ({"tools": [tool(), tool(name="g", arguments={})]}, "tools[1].function.arguments"),
    ({"tools": [tool()], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name"),
    ({"messages": answered(called(name="f"))}, f"{FIRST}.name"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages[0].tool_calls"),
]
MISSING: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{}]}, "tools[0].function"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [tool()], "tool_choice": {}}, "tool_choice.type"),
    ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"messages": answered({})}, f"{FIRST}.function"),
    ({"messages": answered({"function": {"arguments": "{}"}})}, f"{FIRST}.function.name"),
    ({"messages": answered({"function": {"name": "f"}})}, f"{FIRST}.function.arguments"),
    ({"messages": [USER, {"role": "tool", "tool_call_id": "x"}]}, "messages[1].content"),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    (
        {"messages": answered(function_call={"name": "f", "arguments": "{}"}, content="x")},
        "messages[1].function_call",
    ),
]
# Wrong requests whose faults a JSON schema cannot express.
CONTRADICTORY: list[tuple[dict[str, Any], str]] = [
    ({"tools": [tool(), tool(name="g"), tool()]}, "tools[2].function.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": tool()}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": tool(name="g")}, "tool_choice.function.name"),
    ({"tools": [tool()], "tool_choice": allowed("auto", tool(name="g"))}, f"{ALLOWED}.tools[0].function.name"),
    ({"messages": answered(called("{"))}, f"{FIRST}.function.arguments"),
    ({"messages": answered(called("[1]"))}, f"{FIRST}.function.arguments"),
    ({"messages": answered(called('"f"'))}, f"{FIRST}.function.arguments"),
    ({"messages": answered(called('{"a": NaN}'))}, f"{FIRST}.function.arguments"),
    ({"messages": answered(called('{"a": 1} x'))}, f"{FIRST}.function.arguments"),
    ({"messages": answered(called('{"a": "\\ud800"}'))}, f"{FIRST}.function.arguments"),
    ({"messages": answered(called(TOO_DEEP))}, f"{FIRST}.function.arguments"),
    ({"messages": answered(called('{"a":' + "9" * 200 + "}"))}, f"{FIRST}.function.arguments"),
    ({"messages": answered(called(MANY_VALUES))}, f"{FIRST}.function.arguments"),
]
WRONG = [
    (code, *row)
    for code, rows in (
        ("invalid_value", INVALID + CONTRADICTORY),
        ("unknown_parameter", UNKNOWN),
        ("missing_required_parameter", MISSING),
        ("unsupported_parameter", REFUSED),
    )
    for row in rows
]


@pytest.mark.parametrize(("code", "fields", "param"), WRONG)
def test_a_wrong_field_is_named(code: str, fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields)[:2] == (code, param)


@pytest.mark.parametrize(("code", "fields", "param"), WRONG)
def test_the_openapi_document_knows_what_is_wrong(code: str, fields: dict[str, Any], param: str) -> None:
    assert REQUEST.is_valid({"messages": [USER], **fields}) == ((fields, param) in CONTRADICTORY)


def test_an_answer_without_text_and_calls_is_refused() -> None:
    code, param, message = refusal(messages=answered())
    assert (code, param) == ("missing_required_parameter", "messages[1].content")
    assert "needs 'content' or 'tool_calls'" in message


def test_errors_say_what_is_known() -> None:
    assert "known: function" in refusal(tools=[{"type": "retrieval"}])[2]
    assert "known: none, auto, required" in refusal(tools=[tool()], tool_choice="any")[2]
    assert "use 'tools'" in refusal(functions=[{"name": "f"}])[2]


def test_a_tool_may_have_just_a_name() -> None:
    assert converted(tools=[tool()]).tools.tools == [Tool("f", '{"type":"function","function":{"name":"f"}}')]
    assert converted(tools=[{"function": {"name": "f"}}]).tools == converted(tools=[tool()]).tools
