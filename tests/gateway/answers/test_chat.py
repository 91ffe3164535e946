"""Tests chat completions as clients see them, through OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
import json
import threading

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.answers import chat, sending
from omni_pipeline.errors import ErrorInfo, internal
from tests.gateway.scripted import HELLO, ScriptedPipeline, Served, serving, token

MESSAGES = [{"role": "user", "content": "Hello?"}]
ASK = {"model": "any", "messages": MESSAGES}
CORRUPT = ErrorInfo(status=400, message="The picture is corrupt.", code="invalid_image", param="images[0]")


async def events_of(served: Served, body: dict) -> list:
    """The data of each event of a stream. All data except the data of the last event are read as JSON.

    The parser of the bench is not used, because it also accepts events with several lines, and comments. This function
    requires that each event is one line, followed by an empty line.
    """
    async with served.session.post(f"{served.url}/v1/chat/completions", json=body | {"stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        text = (await response.read()).decode()
    data = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    return [piece if piece == "[DONE]" else json.loads(piece) for piece in data]


class TestWhole:
    async def test_answers_in_openai_form(self):
        async with serving(model_name="qwen3-omni") as served, served.openai() as client:
            completion = await client.chat.completions.create(**ASK)
        ChatCompletion.model_validate(completion.model_dump(), strict=True)
        assert completion.id.startswith("chatcmpl-")
        assert completion.model == "qwen3-omni"
        assert completion.object == "chat.completion"
        [choice] = completion.choices
        assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello", "stop")
        assert choice.logprobs is None

    async def test_counts_tokens(self):
        async with serving() as served, served.openai() as client:
            usage = (await client.chat.completions.create(**ASK)).usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 3, 14)
        details = usage.prompt_tokens_details
        assert (details.cached_tokens, details.audio_tokens, details.image_tokens, details.video_tokens) == (4, 2, 5, 0)

    async def test_gives_logprobs_when_asked(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.chat.completions.create(**ASK, logprobs=True, top_logprobs=1))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "H", [token("H", -0.25, (("J", -2.0),))])
            pipeline.say(request_id, "", [token("é", float("-inf"))])
            pipeline.finish(request_id, "length")
            [choice] = (await asked).choices
        assert choice.finish_reason == "length"
        first, second = choice.logprobs.content
        assert (first.token, first.logprob, first.bytes) == ("H", -0.25, [72])
        assert [(top.token, top.logprob, top.bytes) for top in first.top_logprobs] == [("J", -2.0, [74])]
        assert (second.bytes, second.logprob, second.top_logprobs) == ([0xC3, 0xA9], -9999.0, [])

    async def test_passes_the_whole_request_on(self):
        wav = base64.b64encode(b"RIFF").decode()
        content = [
            {"type": "text", "text": "a"},
            {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
        ]
        async with serving() as served, served.openai() as client:
            await client.chat.completions.create(
                model="x",
                messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": content}],
                temperature=0.5,
                seed=3,
                extra_body={"top_k": 7, "stage_sampling": {"thinker": {"temperature": 0.75}}},
            )
            body = served.pipeline.bodies[await served.pipeline.submitted.get()]
        assert [turn.role for turn in body.turns] == ["system", "user"]
        assert [(media.kind, bytes(media.data.buffer())) for media in body.media] == [
            ("audio", b"RIFF"),
            ("image", b"\x89PNG"),
        ]
        assert (body.thinker.temperature, body.thinker.top_k, body.thinker.seed) == (0.75, 7, 3)

    async def test_passes_large_bodies_on(self):
        picture, sound = bytes(range(256)) * 3000, bytes(range(255, -1, -1)) * 300
        text = "Größe: \U0001f600\n" * 5000
        content = [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(picture).decode()}"}},
            {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}},
        ]
        data = json.dumps({"messages": [{"role": "user", "content": content}]})
        async with serving() as served:
            for sent in (data, data.replace("/", "\\/"), data.replace("+", "\\u002B").replace("=", "\\u003d")):
                assert (await served.post(sent.encode()))[0] == 200
                body = served.pipeline.bodies[await served.pipeline.submitted.get()]
                assert body.turns[0].content[0].text == text
                assert [bytes(media.data.buffer()) for media in body.media] == [picture, sound]

    @pytest.mark.parametrize(("characters", "on_loop"), [(1000, True), (100_000, False)])
    async def test_checks_a_large_body_off_the_event_loop(self, characters, on_loop, monkeypatch):
        threads = []

        def interpret(*arguments):
            threads.append(threading.current_thread())
            return interpret_really(*arguments)

        interpret_really = chat._interpret
        monkeypatch.setattr(chat, "_interpret", interpret)
        async with serving() as served:
            assert (await served.post({"messages": [{"role": "user", "content": "x" * characters}]}))[0] == 200
        assert [thread is threading.main_thread() for thread in threads] == [on_loop]


class TestStream:
    async def test_streams_in_openai_form(self):
        async with serving() as served, served.openai() as client:
            stream = await client.chat.completions.create(**ASK, stream=True)
            chunks = [chunk async for chunk in stream]
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True), strict=True)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
        assert len({chunk.id for chunk in chunks}) == 1

    async def test_marks_every_chunk_as_text_and_ends_with_done(self):
        async with serving() as served:
            *chunks, last = await events_of(served, HELLO | {"stream_options": {"include_usage": True}})
        assert last == "[DONE]"
        assert {chunk["modality"] for chunk in chunks} == {"text"}

    async def test_sends_usage_last_when_asked(self):
        async with serving() as served:
            chunks = await events_of(served, HELLO | {"stream_options": {"include_usage": True}})
        assert chunks[-2]["choices"] == []
        assert chunks[-2]["usage"]["total_tokens"] == 14
        assert all(chunk["usage"] is None for chunk in chunks[:-2])

    async def test_leaves_usage_out_otherwise(self):
        async with serving() as served:
            *chunks, _ = await events_of(served, HELLO)
        assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)

    async def test_sends_text_as_it_comes(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.chat.completions.create(**ASK, stream=True))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "one")
            stream = await asked
            seen = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
            pipeline.say(request_id, "two")
            seen.append((await anext(stream)).choices[0].delta.content)
            pipeline.finish(request_id)
            assert [chunk.choices[0].finish_reason async for chunk in stream] == ["stop"]
        assert seen == ["", "one", "two"]

    async def test_streams_logprobs(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(events_of(served, HELLO | {"logprobs": True}))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "", [token("H")])
            pipeline.finish(request_id)
            _, chunk, *_ = await asked
        assert chunk["choices"][0]["logprobs"] == {
            "content": [{"token": "H", "logprob": -0.5, "bytes": [72], "top_logprobs": []}],
            "refusal": None,
        }

    async def test_keeps_a_quiet_stream_alive(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, limits={"keep_alive_seconds": 0.01}) as served:
            reader, writer = await served.connect(HELLO | {"stream": True})
            pipeline.say(await pipeline.submitted.get(), "x")
            await reader.readuntil(b'"content":"x"')
            assert await reader.readuntil(b": keep-alive\n\n")
            writer.close()

    async def test_begins_a_stream_that_has_nothing_to_say_for_long(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, limits={"keep_alive_seconds": 0.01}) as served, served.openai() as client:
            # This call returns when the headers have arrived.
            stream = await client.chat.completions.create(**ASK, stream=True)
            pipeline.say_all(await pipeline.submitted.get(), ["Hel", "lo"])
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello"

    async def test_of_such_a_stream_an_early_error_is_an_event(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, limits={"keep_alive_seconds": 0.01}) as served, served.openai() as client:
            stream = await client.chat.completions.create(**ASK, stream=True)
            pipeline.fail(await pipeline.submitted.get(), CORRUPT)
            with pytest.raises(openai.APIError, match="The picture is corrupt"):
                [_ async for _ in stream]


class TestErrors:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_before_the_first_byte_have_their_own_status(self, stream):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.chat.completions.create(**ASK, stream=stream))
            pipeline.fail(await pipeline.submitted.get(), CORRUPT)
            with pytest.raises(openai.BadRequestError) as caught:
                await asked
        assert (caught.value.status_code, caught.value.code, caught.value.param) == (400, "invalid_image", "images[0]")
        assert caught.value.body["message"] == "The picture is corrupt."

    async def test_after_the_first_byte_are_an_event(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.chat.completions.create(**ASK, stream=True))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "one")
            stream = await asked
            pipeline.fail(request_id, internal("The thinker is gone.", code="worker_lost").info, "thinker")
            with pytest.raises(openai.APIError, match="The thinker is gone") as caught:
                [chunk async for chunk in stream]
        assert caught.value.code == "worker_lost"

    async def test_of_a_stage_free_the_other_stages(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(served.post(HELLO))
            request_id = await pipeline.submitted.get()
            pipeline.fail(request_id, CORRUPT)
            assert (await asked)[0] == 400
            assert await pipeline.aborted.get() == request_id

    async def test_of_a_pipeline_that_takes_nothing_are_503_with_a_time_to_retry(self):
        pipeline = ScriptedPipeline([])
        async with serving(pipeline) as served, served.openai() as client:
            pipeline.refusal = ErrorInfo(status=503, message="Gone.", code="worker_lost", retry_after=2)
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(**ASK)
        assert caught.value.response.status_code == 503
        assert caught.value.response.headers["Retry-After"] == "2"

    @pytest.mark.parametrize("stream", [False, True])
    async def test_of_a_lost_chunk_are_500(self, stream):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(served.post(HELLO | {"stream": stream}))
            request_id = await pipeline.submitted.get()
            pipeline.lose(request_id)
            pipeline.say(request_id, "two")
            status, body = await asked
        assert (status, body["error"]["code"]) == (500, "stream_gap")

    async def test_of_time_end_the_request_with_504_and_no_retry(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, limits={"request_seconds": 0.2}) as served, served.openai() as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(**ASK)
            assert await pipeline.aborted.get() == await pipeline.submitted.get()
        assert (caught.value.status_code, caught.value.code) == (504, "request_timeout")
        assert caught.value.response.headers["X-Should-Retry"] == "false"

    @pytest.mark.parametrize("limit", ["receive_seconds", "request_seconds"])
    async def test_of_a_body_that_does_not_arrive_are_408(self, limit):
        async with serving(limits={limit: 0.2}) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert (await reader.readline()).split()[1] == b"408"
            writer.close()


class TestLostWorker:
    GONE = ErrorInfo(status=503, message="A worker died.", type="server_error", code="worker_lost")

    async def test_ends_the_requests_that_need_it(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(served.post(HELLO))
            request_id = await pipeline.submitted.get()
            pipeline.lost(frozenset({"thinker"}), self.GONE)
            status, body = await asked
            assert await pipeline.aborted.get() == request_id
        assert (status, body["error"]["code"]) == (503, "worker_lost")

    @pytest.mark.parametrize("stage", ["image_encoder", "audio_encoder"])
    async def test_leaves_a_request_alone_that_never_needed_it(self, stage):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(served.post(HELLO))
            request_id = await pipeline.submitted.get()
            pipeline.lost(frozenset({stage}), self.GONE)
            pipeline.say_all(request_id, ["fine"])
            status, body = await asked
        assert (status, body["choices"][0]["message"]["content"]) == (200, "fine")

    async def test_leaves_a_request_alone_that_needs_it_no_more(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(served.post(HELLO))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "still ")
            pipeline.lost(frozenset({"preprocessing", "mm_aggregate"}), self.GONE)
            pipeline.say_all(request_id, ["fine"])
            status, body = await asked
        assert (status, body["choices"][0]["message"]["content"]) == (200, "still fine")


class TestClientThatLeaves:
    async def test_while_waiting_for_a_whole_answer_aborts_it(self):
        async with serving(ScriptedPipeline()) as served:
            _, writer = await served.connect(HELLO)
            request_id = await served.pipeline.submitted.get()
            writer.close()
            assert await served.pipeline.aborted.get() == request_id

    async def test_before_the_first_event_aborts_it(self):
        async with serving(ScriptedPipeline()) as served:
            _, writer = await served.connect(HELLO | {"stream": True})
            request_id = await served.pipeline.submitted.get()
            writer.close()
            assert await served.pipeline.aborted.get() == request_id

    async def test_in_the_middle_of_a_stream_aborts_it(self):
        async with serving(ScriptedPipeline()) as served, served.openai() as client:
            asked = asyncio.create_task(client.chat.completions.create(**ASK, stream=True))
            request_id = await served.pipeline.submitted.get()
            served.pipeline.say(request_id, "one")
            stream = await asked
            await anext(stream)
            await stream.close()
            assert await served.pipeline.aborted.get() == request_id

    async def test_is_counted_and_its_late_messages_are_dropped(self):
        async with serving(ScriptedPipeline()) as served:
            _, writer = await served.connect(HELLO)
            request_id = await served.pipeline.submitted.get()
            writer.close()
            await served.pipeline.aborted.get()
            served.pipeline.say(request_id, "late")
            async with served.session.get(f"{served.url}/metrics") as response:
                page = await response.text()
        assert 'omni_requests_total{outcome="cancelled"} 1.0' in page
        assert "omni_late_messages_total 1.0" in page

    async def test_does_not_abort_what_was_complete(self):
        async with serving() as served:
            assert (await served.post(HELLO))[0] == 200
            assert served.pipeline.aborted.empty()


class TestSlowReader:
    """A client that begins to read a stream and then stops reading, while text keeps coming."""

    @staticmethod
    async def stalled(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        pipeline = served.pipeline
        reader, writer = await served.connect(HELLO | {"stream": True})
        request_id = await pipeline.submitted.get()
        pipeline.say(request_id, "x")
        await reader.readuntil(b"\r\n\r\n")
        # The sockets buffer some megabytes, so only a longer text has parts that wait in the server.
        while pipeline.aborted.empty():
            pipeline.say(request_id, "x" * 20_000)
            await asyncio.sleep(0)
        assert await pipeline.aborted.get() == request_id
        return reader, writer

    async def test_is_cut_off_and_hurts_no_other_request(self, monkeypatch):
        monkeypatch.setattr(sending, "GRACE_SECONDS", 0.0)
        async with serving(ScriptedPipeline(), limits={"reader_bytes": 1_000_000}) as served:
            reader, writer = await self.stalled(served)
            served.pipeline.answer = ["Hello"]
            assert (await served.post(HELLO))[0] == 200
            async with served.session.get(f"{served.url}/metrics") as response:
                assert 'omni_errors_total{code="slow_reader"} 1.0' in await response.text()
            rest = await reader.read()
            assert not rest.endswith(b"0\r\n\r\n"), "it looks like a whole response"
            assert b"[DONE]" not in rest
            writer.close()

    async def test_learns_why_when_it_reads_on(self):
        async with serving(ScriptedPipeline(), limits={"reader_bytes": 1_000_000}) as served:
            reader, writer = await self.stalled(served)
            tail = b""
            while b'"code":"slow_reader"' not in tail:
                piece = await reader.read(1 << 20)
                assert piece, "the stream ended without an error"
                tail = (tail + piece)[-2000:]
            writer.close()


class TestChoices:
    async def test_each_choice_has_its_own_text_and_end(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(client.chat.completions.create(**ASK, n=3))
            request_id = await pipeline.submitted.get()
            assert pipeline.bodies[request_id].text.choices == 3
            for choice, text in ((2, "c"), (0, "a"), (1, "b"), (2, "C")):
                pipeline.say(request_id, text, choice=choice)
            pipeline.finish(request_id, "length", choice=2, last=False)
            pipeline.finish(request_id, choice=0, last=False)
            pipeline.finish(request_id, choice=1)
            completion = await asked
        ChatCompletion.model_validate(completion.model_dump(), strict=True)
        found = [(choice.index, choice.message.content, choice.finish_reason) for choice in completion.choices]
        assert found == [(0, "a", "stop"), (1, "b", "stop"), (2, "cC", "length")]

    async def test_the_prompt_counts_once(self):
        async with serving() as served, served.openai() as client:
            usage = (await client.chat.completions.create(**ASK, n=4)).usage
            stream = await client.chat.completions.create(
                **ASK, n=4, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            async with served.session.get(f"{served.url}/metrics") as response:
                page = await response.text()
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 12, 23)
        assert usage.prompt_tokens_details.cached_tokens == 4
        assert chunks[-1].usage == usage
        assert "\nomni_prompt_tokens_total 22.0\n" in page
        assert "\nomni_completion_tokens_total 24.0\n" in page

    async def test_a_stream_tells_the_choices_apart(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(events_of(served, HELLO | {"n": 2}))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "b", choice=1)
            pipeline.finish(request_id, "length", choice=1, last=False)
            pipeline.say(request_id, "a")
            pipeline.finish(request_id)
            *events, done = await asked
        assert done == "[DONE]"
        choices = [event["choices"][0] for event in events]
        assert [(choice["index"], choice["delta"], choice["finish_reason"]) for choice in choices] == [
            (0, {"role": "assistant", "content": ""}, None),
            (1, {"role": "assistant", "content": ""}, None),
            (1, {"content": "b"}, None),
            (1, {}, "length"),
            (0, {"content": "a"}, None),
            (0, {}, "stop"),
        ]
        assert len({event["id"] for event in events}) == 1

    @pytest.mark.parametrize("stream", [False, True])
    async def test_an_answer_without_one_of_its_choices_is_an_error(self, stream):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            ask = events_of(served, HELLO | {"n": 2}) if stream else served.post(HELLO | {"n": 2})
            asked = asyncio.create_task(ask)
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "a")
            pipeline.finish(request_id)
            found = await asked
        error = found[-1]["error"] if stream else found[1]["error"]
        assert error["code"] == "stream_gap"

    async def test_a_failure_ends_all_choices(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served:
            asked = asyncio.create_task(events_of(served, HELLO | {"n": 2}))
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "a")
            pipeline.finish(request_id, last=False)
            pipeline.fail(request_id, CORRUPT)
            events = await asked
        assert events[-1]["error"]["code"] == "invalid_image"

    async def test_a_request_for_more_choices_than_the_server_has_places_is_wrong(self):
        async with serving(limits={"requests": 3}) as served:
            status, found = await served.post(HELLO | {"n": 4})
            assert (status, found["error"]["param"], found["error"]["code"]) == (400, "n", "invalid_value")
            assert (await served.post(HELLO | {"n": 3}))[0] == 200
