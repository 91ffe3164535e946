"""Tools work with the server as they work with OpenAI. The tests use whole and streamed answers, forced and free calls,
seeds, and many requests at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest
from transformers import Qwen3OmniMoeProcessor

from tests.server import Server

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": ["car", "star <tool_call>"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "exact": {"type": "boolean"},
    },
    "required": ["kind", "count", "exact"],
    "additionalProperties": False,
}
COUNT = {"type": "function", "function": {"name": "count", "description": "Counts things", "parameters": SCHEMA}}
STOP = {
    "type": "function",
    "function": {"name": "stop", "parameters": {"type": "object", "additionalProperties": False}},
}
QUESTION = [{"role": "user", "content": "How many cars are there in the picture?"}]
CALLED = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'


def ask(client: openai.OpenAI, **options: Any) -> Any:
    options = {"messages": QUESTION, "tools": [COUNT, STOP], "max_tokens": 200} | options
    return client.chat.completions.create(model="qwen3-omni", **options).choices[0]


def calls(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


def check(found: list[tuple[str, Any]]) -> None:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (COUNT, STOP)}
    for name, arguments in found:
        jsonschema.validate(arguments, schemas[name])


@pytest.fixture(scope="module")
def processor(server: Server) -> Any:
    return Qwen3OmniMoeProcessor.from_pretrained(server.checkpoint)


@pytest.fixture
def write(client: openai.OpenAI, processor: Any) -> Callable[..., Any]:
    """A function that returns the answer of a model that is forced to write a given text."""
    # The pattern also allows the token that marks a real call. A bias against this token keeps the model from using it.
    [marker] = processor.tokenizer.encode("<tool_call>")

    def written(text: str, **options: Any) -> Any:
        body = {"regex": re.escape(text), "return_token_ids": True}
        return ask(client, extra_body=body, logit_bias={str(marker): -100}, **options)

    return written


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_required_answer_is_calls_that_follow_the_schemas(client: openai.OpenAI, seed: int | None) -> None:
    sampling = {} if seed is None else {"seed": seed, "temperature": 1.0}
    choice = ask(client, tool_choice="required", parallel_tool_calls=False, **sampling)
    found = calls(choice.message)
    assert (len(found), choice.finish_reason, choice.message.content) == (1, "tool_calls", None)
    check(found)
    again = ask(client, tool_choice="required", parallel_tool_calls=False, **sampling)
    assert calls(again.message) == found


def test_a_named_function_is_called_once(client: openai.OpenAI) -> None:
    for name in ("count", "stop"):
        choice = ask(client, tool_choice={"type": "function", "function": {"name": name}})
        assert [called for called, _ in calls(choice.message)] == [name]
        check(calls(choice.message))
        assert choice.finish_reason == "tool_calls"


def test_only_allowed_tools_are_called(client: openai.OpenAI) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "stop"}}]}
    choice = ask(client, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}, parallel_tool_calls=False)
    assert calls(choice.message) == [("stop", {})]


def test_a_stream_has_the_calls_of_the_whole_answer(client: openai.OpenAI) -> None:
    options = {"tool_choice": "required", "parallel_tool_calls": False, "seed": 5, "temperature": 1.0}
    whole = calls(ask(client, **options).message)
    strict = [{"type": "function", "function": tool["function"] | {"strict": True}} for tool in (COUNT, STOP)]
    with client.chat.completions.stream(
        model="qwen3-omni", messages=QUESTION, tools=strict, max_tokens=200, **options
    ) as stream:
        [choice] = stream.get_final_completion().choices
    assert calls(choice.message) == whole
    assert (choice.message.content or None, choice.finish_reason) == (None, "tool_calls")


def test_many_answers_at_a_time_are_those_of_each_alone(client: openai.OpenAI) -> None:
    forms = [
        {"tool_choice": "required", "parallel_tool_calls": False},
        {"tool_choice": {"type": "function", "function": {"name": "count"}}},
        {},
        {"tool_choice": "none"},
    ]
    requests = [forms[index % 4] | {"seed": index, "temperature": 0.9, "max_tokens": 60} for index in range(12)]

    def answer(options: dict[str, Any]) -> tuple[Any, ...]:
        choice = ask(client, **options)
        return calls(choice.message), choice.message.content, choice.finish_reason

    alone = [answer(options) for options in requests]
    with ThreadPoolExecutor(12) as clients:
        assert list(clients.map(answer, requests)) == alone


@pytest.mark.parametrize("question", ["How many cars are there?", "Tell me a story.", "1 < 2 <tool_call> ?"])
def test_an_answer_that_calls_nothing_is_the_same_with_and_without_the_parser(
    client: openai.OpenAI, processor: Any, question: str
) -> None:
    """The request without tools has the same prompt, because the client describes the tools in a system message."""
    user = {"role": "user", "content": question}
    prompt = processor.apply_chat_template([user], tools=[COUNT, STOP], add_generation_prompt=True, tokenize=False)
    shown = prompt.removeprefix("<|im_start|>system\n").partition("<|im_end|>")[0]
    options = {"logprobs": True, "extra_body": {"ignore_eos": True, "return_token_ids": True}, "max_tokens": 100}
    parsed = ask(client, messages=[user], **options)
    plain = ask(client, messages=[{"role": "system", "content": shown}, user], tools=[], **options)
    assert parsed.token_ids == plain.token_ids
    assert (parsed.message, parsed.finish_reason) == (plain.message, plain.finish_reason)
    stream = client.chat.completions.create(
        model="qwen3-omni", messages=[user], tools=[COUNT, STOP], stream=True, **options
    )
    choices = [choice for chunk in stream for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == plain.message.content
    streamed = [one for choice in choices for one in (choice.logprobs and choice.logprobs.content) or ()]
    for logprobs in (streamed, parsed.logprobs.content):
        assert [one.token for one in logprobs] == [one.token for one in plain.logprobs.content]
        # The last digits depend on how much of the prompt is in the prefix cache.
        expected = [one.logprob for one in plain.logprobs.content]
        assert [one.logprob for one in logprobs] == pytest.approx(expected, abs=1e-3)


def test_content_around_calls_and_malformed_calls(write: Callable[..., Any]) -> None:
    choice = write(f"Let me see.\n{CALLED}\n{CALLED}\nSo.")
    assert calls(choice.message) == [("stop", {})] * 2
    assert (choice.message.content, choice.finish_reason) == ("Let me see.\nSo.", "tool_calls")
    for text in (CALLED.replace("stop", "halt"), CALLED.replace("{}", "[]"), CALLED[:-14], f"A {CALLED[:40]}"):
        choice = write(text)
        assert (calls(choice.message), choice.message.content, choice.finish_reason) == ([], text, "stop")


def test_a_call_that_is_cut_off_is_content(write: Callable[..., Any]) -> None:
    whole = write(f"One.\n{CALLED}\n{CALLED}")
    ids = whole.token_ids
    cut = write(f"One.\n{CALLED}\n{CALLED}", max_tokens=len(ids) - 6)
    assert (calls(cut.message), cut.finish_reason) == ([("stop", {})], "length")
    assert cut.message.content.startswith("One.\n<tool_call>\n{")


def test_one_call_is_enough_without_parallel_calls(write: Callable[..., Any]) -> None:
    choice = write(f"One.\n{CALLED}\n{CALLED}\nTwo.", parallel_tool_calls=False)
    assert (calls(choice.message), choice.message.content) == ([("stop", {})], "One.")
    assert choice.finish_reason == "tool_calls"


def test_what_is_written_with_no_tools_to_call_is_content(write: Callable[..., Any]) -> None:
    for options in ({"tools": []}, {"tool_choice": "none"}):
        assert write(CALLED, **options).message.content == CALLED


def test_tools_are_read_and_results_too(client: openai.OpenAI) -> None:
    """Each part of the conversation makes the prompt longer, so each part is in the prompt."""
    call = {"id": "call_1", "type": "function", "function": {"name": "stop", "arguments": "{}"}}
    messages: list[Any] = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It has stopped."},
    ]
    sizes = []
    for options in (
        {"tools": []},
        {"tool_choice": "none"},
        {"tools": [STOP]},
        {},
        {"messages": messages[:2]},
        {"messages": messages},
    ):
        options = {"messages": QUESTION, "tools": [COUNT, STOP], "max_tokens": 1} | options
        sizes.append(client.chat.completions.create(model="qwen3-omni", **options).usage.prompt_tokens)
    assert sizes[0] == sizes[1]
    assert sizes[1:] == sorted(set(sizes[1:]))
