"""Tests answers with tool calls as clients receive them: whole, streamed and spoken."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from stages.messages import ToolCall
from tests.gateway.answers.test_audio_formats import cut
from tests.gateway.answers.test_chat import events_of
from tests.gateway.answers.test_speech import MEANT, PCM, SPOKEN, audio_events
from tests.gateway.scripted import HELLO, ScriptedPipeline, serving, token

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
ASK = HELLO | {"tools": TOOLS}
WEATHER, TIME = ToolCall("weather", '{"city": "Köln"}'), ToolCall("time", "{}")


class Calling(ScriptedPipeline):
    """A pipeline whose answers consist of `pieces`. Each piece is a text or a list of tool calls.

    Attributes:
        reason: The finish reason.
    """

    def __init__(self, *pieces: str | list[ToolCall], voice: Any = None, reason: str = "tool_calls") -> None:
        super().__init__([], voice=voice)
        self.pieces = pieces
        self.reason = reason

    def say_all(self, request_id: str, pieces: list[str]) -> None:
        for piece in self.pieces if not request_id.startswith("warm-up") else ():
            if isinstance(piece, str):
                self.say(request_id, piece)
            else:
                self.call(request_id, *piece)
        self.finish(request_id, self.reason)
        if self.bodies[request_id].speech is not None:
            for samples in self.voice:
                self.speak(request_id, samples)
            self.hush(request_id, 2 * len(self.voice))


async def whole(pipeline: ScriptedPipeline, **fields: Any) -> dict[str, Any]:
    async with serving(pipeline, speaks=True) as served:
        status, answer = await served.post(ASK | fields)
        assert status == 200, answer
        [choice] = answer["choices"]
        return choice


async def streamed(pipeline: ScriptedPipeline, **fields: Any) -> list[Any]:
    async with serving(pipeline, speaks=True) as served:
        return await events_of(served, ASK | fields)


def pieces(events: list[Any]) -> list[dict[str, Any]]:
    """The deltas of a stream, without the first one."""
    return [event["choices"][0]["delta"] for event in events[1:-2]]


@pytest.mark.parametrize(
    ("said", "content"), [([[WEATHER]], None), (["Let me ", "see.", [WEATHER]], "Let me see."), ([[WEATHER], "x"], "x")]
)
async def test_a_whole_answer_has_calls(said: list[Any], content: str | None) -> None:
    choice = await whole(Calling(*said))
    [call] = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    assert (call["type"], call["function"]) == ("function", {"name": "weather", "arguments": '{"city": "Köln"}'})
    assert (choice["message"]["content"], choice["finish_reason"]) == (content, "tool_calls")


async def test_calls_have_ids_of_their_own() -> None:
    calls = (await whole(Calling([WEATHER, TIME], [WEATHER])))["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["weather", "time", "weather"]
    assert len({call["id"] for call in calls}) == 3


async def test_an_answer_without_calls_has_no_such_field() -> None:
    choice = await whole(Calling("Hello", reason="stop"))
    assert choice["message"].keys() == {"role", "content", "refusal"}
    assert choice["finish_reason"] == "stop"


async def test_a_text_that_was_cut_off_after_a_call_says_so() -> None:
    choice = await whole(Calling([WEATHER], reason="length"))
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["tool_calls"]) == 1


async def test_a_call_is_streamed_as_its_name_and_then_its_arguments() -> None:
    events = await streamed(Calling("Hm.", [WEATHER, TIME]))
    content, *calls = pieces(events)
    assert content == {"content": "Hm."}
    ids = [piece["tool_calls"][0].pop("id") for piece in calls if "id" in piece["tool_calls"][0]]
    assert len(set(ids)) == 2
    assert [piece["tool_calls"] for piece in calls] == [
        [{"index": 0, "type": "function", "function": {"name": "weather", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"city": "Köln"}'}}],
        [{"index": 1, "type": "function", "function": {"name": "time", "arguments": ""}}],
        [{"index": 1, "function": {"arguments": "{}"}}],
    ]
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * 6 + ["tool_calls"]


async def test_calls_in_several_messages_count_on() -> None:
    events = await streamed(Calling([TIME], "and", [TIME]))
    assert [piece["tool_calls"][0]["index"] for piece in pieces(events) if "tool_calls" in piece] == [0, 0, 1, 1]


async def test_openais_client_joins_the_pieces() -> None:
    async with serving(Calling("Hm.", [WEATHER], [TIME])) as served, served.openai() as client:
        # This helper of the client accepts only strict tools.
        strict = [{"type": "function", "function": tool["function"] | {"strict": True}} for tool in TOOLS]
        stream = client.chat.completions.stream(model="x", messages=HELLO["messages"], tools=strict)
        async with stream as events:
            done = [event async for event in events if event.type == "tool_calls.function.arguments.done"]
            completion = await events.get_final_completion()
    assert [(one.name, one.arguments) for one in done] == [("weather", WEATHER.arguments), ("time", "{}")]
    message = completion.choices[0].message
    assert message.content == "Hm."
    assert [call.function.name for call in message.tool_calls] == ["weather", "time"]
    assert completion.choices[0].finish_reason == "tool_calls"


async def test_bodies_are_openais() -> None:
    async with serving(Calling("Hm.", [WEATHER])) as served:
        _, answer = await served.post(ASK)
        events = await events_of(served, ASK)
    ChatCompletion.model_validate(answer)
    for event in events[:-1]:
        ChatCompletionChunk.model_validate(event)


async def test_log_probabilities_and_ids_come_once_with_the_first_chunk_of_a_part() -> None:
    pipeline = ScriptedPipeline()
    asked = ASK | {"logprobs": True, "return_token_ids": True}
    async with serving(pipeline) as served:
        for stream in (False, True):
            reading = asyncio.create_task(events_of(served, asked) if stream else served.post(asked))
            request_id = await pipeline.submitted.get()
            pipeline.call(request_id, WEATHER, TIME, text="a", logprobs=[token("a"), token("<tool_call>")], ids=[1, 2])
            pipeline.call(request_id, TIME, logprobs=[token("x")], ids=[3])
            pipeline.finish(request_id, "tool_calls")
            if stream:
                choices = [event["choices"][0] for event in (await reading)[1:-2]]
                assert [[one["token"] for one in choice["logprobs"]["content"]] for choice in choices] == [
                    ["a", "<tool_call>"], [], [], [], [], ["x"], [],
                ]  # fmt: skip
                assert [choice["token_ids"] for choice in choices] == [[1, 2], [], [], [], [], [3], []]
            else:
                [choice] = (await reading)[1]["choices"]
                assert [one["token"] for one in choice["logprobs"]["content"]] == ["a", "<tool_call>", "x"]
                assert choice["token_ids"] == [1, 2, 3]


class TestSpoken:
    """Answers with text before the call, and answers that consist only of calls."""

    async def test_the_sound_before_a_call_is_kept(self) -> None:
        choice = await whole(Calling("Let me see.", [WEATHER], voice=cut()), **SPOKEN)
        assert base64.b64decode(choice["message"]["audio"]["data"]) == MEANT
        assert choice["message"]["audio"]["transcript"] == choice["message"]["content"] == "Let me see."
        assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
        assert choice["finish_reason"] == "tool_calls"

    async def test_an_answer_of_calls_has_no_sound(self) -> None:
        message = (await whole(Calling([WEATHER]), **SPOKEN))["message"]
        assert message.keys() == {"role", "content", "refusal", "tool_calls"}
        events = await streamed(Calling([WEATHER]), **SPOKEN)
        assert not audio_events(events)
        assert [piece.keys() for piece in pieces(events)] == [{"tool_calls"}] * 2
        assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"

    async def test_a_silent_text_still_has_its_empty_sound(self) -> None:
        assert (await whole(Calling("a", [WEATHER]), **SPOKEN))["message"]["audio"]["data"] == ""
        assert (await whole(Calling("", reason="stop"), **SPOKEN))["message"]["audio"]["data"] == ""

    async def test_a_stream_has_text_calls_and_sound(self) -> None:
        events = await streamed(Calling("Let me see.", [WEATHER], voice=cut()), **SPOKEN)
        sound = b"".join(base64.b64decode(one["choices"][0]["delta"]["audio"]["data"]) for one in audio_events(events))
        assert sound == MEANT
        assert sum("tool_calls" in piece for piece in pieces(events)) == 2

    async def test_an_answer_that_is_only_heard_has_calls_too(self) -> None:
        only = SPOKEN | {"modalities": ["audio"]}
        message = (await whole(Calling("Hm.", [WEATHER], voice=cut()), **only))["message"]
        assert (message["content"], message["audio"]["transcript"]) == (None, "Hm.")
        assert len(message["tool_calls"]) == 1
        events = await streamed(Calling("Hm.", [WEATHER], voice=cut()), **only)
        assert [piece["audio"]["transcript"] for piece in pieces(events) if "transcript" in piece.get("audio", {})] == [
            "Hm."
        ]
        assert sum("tool_calls" in piece for piece in pieces(events)) == 2

    async def test_the_answer_can_be_sent_back_by_the_id_of_its_sound(self) -> None:
        async with serving(Calling("Let me see.", [WEATHER], voice=cut()), speaks=True) as served:
            _, answer = await served.post(ASK | {"modalities": ["text", "audio"], "audio": PCM})
            message = answer["choices"][0]["message"]
            earlier = {
                "role": "assistant",
                "audio": {"id": message["audio"]["id"]},
                "tool_calls": message["tool_calls"],
            }
            result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "Rain"}
            status, _ = await served.post(ASK | {"messages": [*HELLO["messages"], earlier, result]})
            assert status == 200
            await served.pipeline.submitted.get()
            turns = served.pipeline.bodies[await served.pipeline.submitted.get()].turns
        assert turns[1].content[0].text == "Let me see."
        assert json.loads(turns[1].calls[0].arguments) == {"city": "Köln"}
