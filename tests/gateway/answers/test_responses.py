"""Tests the Responses API as clients see it, through OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from omni_pipeline.errors import ErrorInfo
from stages.messages import ToolCall
from tests.gateway.scripted import ScriptedPipeline, Served, serving, token

ASK = {"model": "any", "input": "Hello?"}
CORRUPT = ErrorInfo(status=400, message="'messages[0].content[0].image_url' is corrupt.", code="invalid_image",
                    param="messages[0].content[0].image_url")  # fmt: skip
OPENING = ["response.created", "response.in_progress"]
MESSAGE = ["response.output_item.added", "response.content_part.added"]
MESSAGE_END = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
DELTA = "response.output_text.delta"


async def events_of(served: Served, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of each event of a stream. The name of each event must be its type, and the events must be numbered."""
    async with served.session.post(f"{served.url}/v1/responses", json=body | {"stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        text = (await response.read()).decode()
    events = []
    for block in re.sub(r": keep-alive\n\n", "", text).split("\n\n")[:-1]:
        name, data = re.fullmatch(r"event: (\S+)\ndata: (\{.*\})", block).groups()
        events.append(json.loads(data))
        assert events[-1]["type"] == name
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    return events


async def _post(served: Served, body: dict[str, Any]) -> Any:
    async with served.session.post(f"{served.url}/v1/responses", json=body) as response:
        assert response.status == 200
        return await response.json()


class TestWhole:
    async def test_answers_in_openai_form(self):
        async with serving(model_name="qwen3-omni") as served, served.openai() as client:
            response = await client.responses.create(**ASK)
        Response.model_validate(response.model_dump(), strict=True)
        assert response.output_text == "Hello"
        assert response.id.startswith("resp_")
        assert (response.model, response.status, response.error) == ("qwen3-omni", "completed", None)
        [message] = response.output
        assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
        assert message.id.startswith("msg_")

    async def test_counts_tokens(self):
        async with serving() as served, served.openai() as client:
            usage = (await client.responses.create(**ASK)).usage
        assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (11, 3, 14)
        assert usage.input_tokens_details.cached_tokens == 4
        assert usage.output_tokens_details.reasoning_tokens == 0

    async def test_repeats_the_request(self):
        sent = {
            "instructions": "Be brief.",
            "max_output_tokens": 5,
            "metadata": {"a": "b"},
            "parallel_tool_calls": False,
            "reasoning": {"effort": "low", "summary": "auto"},
            "temperature": 0.5,
            "text": {"format": {"type": "text"}, "verbosity": "low"},
            "top_logprobs": 2,
            "top_p": 0.75,
        }
        async with serving() as served, served.openai() as client:
            response = (await client.responses.create(**ASK, **sent)).model_dump()
        assert {name: response[name] for name in sent} == sent | {
            "reasoning": {"effort": "low", "summary": "auto", "generate_summary": None}
        }

    async def test_tells_what_was_left_out(self):
        async with serving() as served, served.openai() as client:
            response = await client.responses.create(**ASK)
        assert (response.temperature, response.top_p, response.top_logprobs) == (0, 1, 0)
        assert (response.tools, response.tool_choice, response.parallel_tool_calls) == ([], "auto", True)
        assert (response.truncation, response.previous_response_id, response.metadata) == ("disabled", None, {})
        assert response.model_dump()["store"] is False

    async def test_a_cut_answer_is_incomplete(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.responses.create(**ASK))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "Hel")
            pipeline.finish(request_id, "length")
            response = await asked
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert (response.output_text, response.output[0].status) == ("Hel", "incomplete")

    async def test_an_answer_without_text_is_an_empty_message(self):
        async with serving(ScriptedPipeline([])) as served, served.openai() as client:
            response = await client.responses.create(**ASK)
        assert (response.output_text, len(response.output)) == ("", 1)

    async def test_gives_logprobs_when_asked(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(
                client.responses.create(**ASK, include=["message.output_text.logprobs"], top_logprobs=1)
            )
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "H", [token("H", -0.25, (("J", -2.0),))])
            pipeline.finish(request_id)
            response = await asked
        [logprob] = response.output[0].content[0].logprobs
        assert (logprob.token, logprob.logprob, logprob.bytes) == ("H", -0.25, [72])
        assert [(top.token, top.logprob) for top in logprob.top_logprobs] == [("J", -2.0)]

    async def test_passes_the_whole_request_on(self):
        content = [
            {"type": "input_text", "text": "a"},
            {"type": "input_image", "image_url": "data:image/png;base64,iVBORw=="},
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        ]
        async with serving() as served, served.openai() as client:
            await client.responses.create(
                model="x",
                instructions="Be brief.",
                input=[{"role": "user", "content": content}],
                temperature=0.5,
                max_output_tokens=9,
                extra_body={"top_k": 7, "seed": 3},
            )
            body = served.pipeline.bodies[await served.pipeline.submitted.get()]
        assert [turn.role for turn in body.turns] == ["system", "user"]
        assert [(media.kind, bytes(media.data.buffer())) for media in body.media] == [
            ("image", b"\x89PNG"),
            ("audio", b"RIFF"),
        ]
        sampling = body.thinker
        assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.max_tokens) == (0.5, 7, 3, 9)
        assert body.speech is None

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_refusal_by_a_stage_names_the_clients_field(self, stream):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.responses.create(**ASK, stream=stream, instructions="x"))
            pipeline.fail(await pipeline.submitted.get(), ErrorInfo(
                status=400, message="'messages[1].content' is long.", code="invalid_value", param="messages[1].content"
            ))  # fmt: skip
            with pytest.raises(openai.BadRequestError) as caught:
                await asked
        assert caught.value.body["param"] == "input"
        assert caught.value.body["message"] == "'input' is long."

    async def test_an_answer_can_be_sent_back(self):
        async with serving() as served, served.openai() as client:
            first = await client.responses.create(**ASK)
            conversation = [{"role": "user", "content": "Hello?"}, *first.output, {"role": "user", "content": "And?"}]
            await client.responses.create(model="x", input=conversation)
            await served.pipeline.submitted.get()
            body = served.pipeline.bodies[await served.pipeline.submitted.get()]
        assert [turn.role for turn in body.turns] == ["user", "assistant", "user"]

    async def test_needs_a_key_like_every_endpoint(self):
        async with serving(api_keys=["k"]) as served:
            async with served.openai("wrong") as client:
                with pytest.raises(openai.AuthenticationError):
                    await client.responses.create(**ASK)
            async with served.openai("k") as client:
                assert (await client.responses.create(**ASK)).output_text == "Hello"


class TestCalls:
    TOOLS = ({"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True},)

    async def _asked(self, pipeline: ScriptedPipeline, asked: asyncio.Task[Any]) -> Any:
        """The answer to `asked`: a text and two calls."""
        request_id = await pipeline.submitted.get()
        pipeline.say(request_id, "Hm.")
        pipeline.call(request_id, ToolCall("f", '{"a": 1}'), ToolCall("f", "{}"))
        pipeline.finish(request_id, "tool_calls")
        return await asked

    async def test_a_call_is_an_item(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.responses.create(**ASK, tools=self.TOOLS, tool_choice="required"))
            response = await self._asked(pipeline, asked)
        Response.model_validate(response.model_dump(), strict=True)
        message, first, second = response.output
        assert (response.status, response.output_text, message.status) == ("completed", "Hm.", "completed")
        assert (first.type, first.name, first.arguments, first.status) == (
            "function_call",
            "f",
            '{"a": 1}',
            "completed",
        )
        assert second.arguments == "{}"
        assert first.call_id != second.call_id
        assert (response.tool_choice, response.tools[0].name, response.tools[0].strict) == ("required", "f", True)

    async def test_the_events_of_a_call_are_openais(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(events_of(served, ASK | {"tools": self.TOOLS}))
            events = await self._asked(pipeline, asked)
        call = ["response.output_item.added", "response.function_call_arguments.delta",
                "response.function_call_arguments.done", "response.output_item.done"]  # fmt: skip
        assert [event["type"] for event in events] == [
            *OPENING, *MESSAGE, DELTA, *MESSAGE_END, *call, *call, "response.completed"
        ]  # fmt: skip
        added, delta, done, item = events[8:12]
        assert (added["item"]["arguments"], added["item"]["status"]) == ("", "in_progress")
        assert delta["delta"] == done["arguments"] == item["item"]["arguments"] == '{"a": 1}'
        assert {event["output_index"] for event in (added, delta, done, item)} == {1}
        assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", *["function_call"] * 2]

    async def test_an_answer_of_calls_has_no_message(self):
        pipeline = ScriptedPipeline()
        async with (
            serving(pipeline) as served,
            served.openai() as client,
            client.responses.stream(**ASK, tools=self.TOOLS) as stream,
        ):
            request_id = await pipeline.submitted.get()
            pipeline.call(request_id, ToolCall("f", "{}"))
            pipeline.finish(request_id, "tool_calls")
            [item] = (await stream.get_final_response()).output
        assert (item.type, item.name) == ("function_call", "f")


class TestReasoning:
    async def _asked(self, pipeline: ScriptedPipeline, asked: asyncio.Task[Any], *, text: str, end: str) -> Any:
        """The answer to `asked`: reasoning in two pieces, and a text."""
        request_id = await pipeline.submitted.get()
        pipeline.call(request_id, reasoning="Hm", logprobs=[token("Hm")])
        pipeline.call(request_id, reasoning=".", text=text, logprobs=[token("."), token(text)] if text else [])
        pipeline.finish(request_id, end)
        return await asked

    async def test_reasoning_is_an_item_before_the_message(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.responses.create(**ASK, reasoning={"effort": "high"}))
            response = await self._asked(pipeline, asked, text="Yes", end="stop")
        Response.model_validate(response.model_dump(), strict=True)
        reasoning, message = response.output
        assert (reasoning.type, reasoning.status, reasoning.summary) == ("reasoning", "completed", [])
        assert reasoning.id.startswith("rs_")
        assert [(part.type, part.text) for part in reasoning.content] == [("reasoning_text", "Hm.")]
        assert (message.type, response.output_text, response.status) == ("message", "Yes", "completed")

    async def test_the_events_of_reasoning_are_openais(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(events_of(served, ASK))
            events = await self._asked(pipeline, asked, text="Yes", end="stop")
        delta = "response.reasoning_text.delta"
        assert [event["type"] for event in events] == [
            *OPENING, *MESSAGE, delta, delta, "response.reasoning_text.done", *MESSAGE_END[1:],
            *MESSAGE, DELTA, *MESSAGE_END, "response.completed",
        ]  # fmt: skip
        added, part, first, second, text, done, item = events[2:9]
        assert added["item"] == {
            "type": "reasoning", "id": added["item"]["id"], "status": "in_progress", "content": [], "summary": []
        }  # fmt: skip
        assert part["part"] == {"type": "reasoning_text", "text": ""}
        assert (first["delta"], second["delta"], text["text"], done["part"]["text"]) == ("Hm", ".", "Hm.", "Hm.")
        assert {event["item_id"] for event in (part, first, second, text, done)} == {item["item"]["id"]}
        assert {event["output_index"] for event in events[2:9]} == {0}
        assert {event["output_index"] for event in events[9:-1]} == {1}
        assert events[-1]["response"]["output"][0] == item["item"]
        adapter = pydantic.TypeAdapter(ResponseStreamEvent)
        for event in events:
            adapter.validate_python(event, strict=True)

    async def test_openais_helper_reads_the_stream(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client, client.responses.stream(**ASK) as stream:
            reading = asyncio.create_task(stream.get_final_response())
            response = await self._asked(pipeline, reading, text="Yes", end="stop")
        assert [item.type for item in response.output] == ["reasoning", "message"]

    async def test_an_answer_cut_off_in_its_reasoning_has_no_message(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.responses.create(**ASK))
            response = await self._asked(pipeline, asked, text="", end="length")
        [reasoning] = response.output
        assert (response.status, reasoning.type, reasoning.status) == ("incomplete", "reasoning", "incomplete")

    async def test_a_finished_answer_has_a_message_even_without_text(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.responses.create(**ASK))
            response = await self._asked(pipeline, asked, text="", end="stop")
        assert [item.type for item in response.output] == ["reasoning", "message"]

    async def test_a_call_may_follow_reasoning(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.responses.create(**ASK, tools=TestCalls.TOOLS))
            request_id = await pipeline.submitted.get()
            pipeline.call(request_id, ToolCall("f", "{}"), reasoning="Hm")
            pipeline.finish(request_id, "tool_calls")
            response = await asked
        assert [item.type for item in response.output] == ["reasoning", "function_call"]

    async def test_a_failure_keeps_the_reasoning(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(events_of(served, ASK))
            request_id = await pipeline.submitted.get()
            pipeline.call(request_id, reasoning="Hm")
            pipeline.fail(request_id, CORRUPT)
            events = await asked
        [item] = events[-1]["response"]["output"]
        assert (item["status"], item["content"][0]["text"]) == ("incomplete", "Hm")

    @pytest.mark.parametrize("stream", [False, True])
    async def test_logprobs_are_those_of_the_text(self, stream):
        pipeline = ScriptedPipeline()
        asks = ASK | {"include": ["message.output_text.logprobs"]}
        async with serving(pipeline) as served:
            asked = asyncio.create_task(events_of(served, asks) if stream else _post(served, asks))
            request_id = await pipeline.submitted.get()
            thoughts = [token("Hm"), token("</think>")]
            for thought in thoughts:
                thought.reasoning = True
            pipeline.call(request_id, reasoning="Hm", logprobs=thoughts[:1])
            pipeline.call(request_id, text="Yes", logprobs=[thoughts[1], token("Yes")])
            pipeline.finish(request_id)
            found = await asked
        response = found[-1]["response"] if stream else found
        assert [logprob["token"] for logprob in response["output"][1]["content"][0]["logprobs"]] == ["Yes"]


class TestStream:
    async def test_the_events_of_an_answer_are_openais(self):
        async with serving() as served:
            events = await events_of(served, ASK)
        assert [event["type"] for event in events] == [
            *OPENING, *MESSAGE, DELTA, DELTA, *MESSAGE_END, "response.completed"
        ]  # fmt: skip
        created, _, added, part, first, second, text, done, item, completed = events
        assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
        assert (added["item"]["status"], added["item"]["content"], added["output_index"]) == ("in_progress", [], 0)
        assert part["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        assert (first["delta"], second["delta"]) == ("Hel", "lo")
        assert {event["item_id"] for event in (part, first, second, text, done)} == {item["item"]["id"]}
        assert text["text"] == done["part"]["text"] == "Hello"
        assert item["item"] == completed["response"]["output"][0]
        assert completed["response"]["usage"]["output_tokens"] == 3
        assert {event["response"]["id"] for event in (created, completed)} == {created["response"]["id"]}

    async def test_openais_helper_reads_the_stream(self):
        async with serving() as served, served.openai() as client, client.responses.stream(**ASK) as stream:
            kinds = [event.type async for event in stream]
            response = await stream.get_final_response()
        assert kinds[-1] == "response.completed"
        assert (response.output_text, response.status) == ("Hello", "completed")
        Response.model_validate(response.model_dump(exclude={"output": {0: {"content": {0: {"parsed"}}}}}), strict=True)

    async def test_text_comes_before_the_answer_is_complete(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            stream = aiter(await self._open(client, pipeline))
            while (event := await anext(stream)).type != DELTA:
                pass
            assert event.delta == "Hel"

    async def _open(self, client: openai.AsyncOpenAI, pipeline: ScriptedPipeline):
        asked = asyncio.create_task(client.responses.create(**ASK, stream=True))
        pipeline.say(await pipeline.submitted.get(), "Hel")
        return await asked

    async def test_a_cut_answer_is_incomplete(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(events_of(served, ASK))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "Hel")
            pipeline.finish(request_id, "length")
            events = await asked
        assert events[-1]["type"] == "response.incomplete"
        assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}

    async def test_a_failure_is_the_last_event(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(events_of(served, ASK))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "Hel")
            pipeline.fail(request_id, CORRUPT)
            events = await asked
        assert [event["type"] for event in events] == [*OPENING, *MESSAGE, DELTA, "response.failed"]
        response = events[-1]["response"]
        assert response["status"] == "failed"
        assert response["error"] == {
            "code": "invalid_prompt", "message": "'input[0].image_url' is corrupt.", "detail": "invalid_image",
            "param": "input[0].image_url",
        }  # fmt: skip
        assert response["output"][0]["content"][0]["text"] == "Hel"

    async def test_a_failure_before_any_text_comes_after_the_opening(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, limits={"keep_alive_seconds": 0.05}) as served:
            asked = asyncio.create_task(events_of(served, ASK))
            request_id = await pipeline.submitted.get()
            await asyncio.sleep(0.3)
            pipeline.fail(request_id, ErrorInfo(status=503, message="Lost."))
            events = await asked
        assert [event["type"] for event in events] == [*OPENING, "response.failed"]
        assert events[-1]["response"]["error"]["code"] == "server_error"

    async def test_a_client_that_leaves_ends_its_request(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            stream = await self._open(client, pipeline)
            await stream.close()
            async with asyncio.timeout(5):
                assert (await pipeline.aborted.get()).startswith("resp_")
