"""Tests the endpoints other than chat, and the errors, limits, keys and ids of all requests."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging

import openai
import pytest

from gateway.voice_load import FIRST_VOICES
from omni_pipeline.errors import ErrorInfo
from omni_pipeline.logs import TextFormatter
from omni_pipeline.supervision.worker_state import WorkerReport
from omni_pipeline.wire.messages import Claim, StageStats
from tests.gateway.scripted import HELLO, ScriptedPipeline, Served, serving

JSON = {"Content-Type": "application/json"}


async def until_voices(served: Served, *, speaking: int, waiting: int) -> None:
    """Wait until `speaking` streamed spoken answers are being generated, and `waiting` further answers are in the
    queue.
    """
    wanted = {f"omni_voices {speaking}.0", f"omni_voices_waiting {waiting}.0"}
    page: list[str] = []
    while not wanted <= set(page):
        async with served.session.get(f"{served.url}/metrics") as response:
            page = (await response.text()).splitlines()


class TestModels:
    async def test_lists_the_one_model(self):
        async with serving(model_name="qwen3-omni") as served, served.openai() as client:
            [model] = (await client.models.list()).data
        assert (model.id, model.object) == ("qwen3-omni", "model")

    async def test_is_named_after_its_path_otherwise(self):
        async with serving() as served, served.openai() as client:
            assert (await client.models.retrieve("tiny-omni")).id == "tiny-omni"

    async def test_may_have_slashes_in_its_name(self):
        async with serving(model_name="Qwen/Qwen3-Omni") as served:
            status, body = await served.get("/v1/models/Qwen/Qwen3-Omni")
        assert (status, body["id"]) == (200, "Qwen/Qwen3-Omni")

    async def test_another_is_not_found(self):
        async with serving() as served, served.openai() as client:
            with pytest.raises(openai.NotFoundError) as caught:
                await client.models.retrieve("gpt-5")
        assert caught.value.code == "model_not_found"


class TestHealth:
    async def test_is_503_until_the_warm_up_is_answered(self):
        pipeline = ScriptedPipeline()
        pipeline.answers_warmup = False
        async with serving(pipeline) as served:
            status, body = await served.get("/health")
            assert (status, body["status"]) == (503, "starting")
            pipeline.finish("warm-up-1")
            while body["status"] == "starting":
                status, body = await served.get("/health")
        assert (status, body["status"], body["problem"]) == (200, "ok", None)

    async def test_is_503_while_the_pipeline_has_a_problem(self):
        async with serving() as served:
            served.pipeline.problem = "the worker thinker is starting again"
            status, body = await served.get("/health")
            assert (status, body["status"], body["problem"]) == (503, "unavailable", served.pipeline.problem)
            served.pipeline.problem = None
            assert (await served.get("/health"))[0] == 200

    @pytest.mark.parametrize(
        ("state", "status"),
        [("loading", "starting"), ("restarting", "unavailable"), ("unhealthy", "unhealthy")],
    )
    async def test_tells_how_workers_are_and_what_they_said_last(self, state, status):
        async with serving() as served:
            await served.ready()
            worker = WorkerReport(state, ("thinker",), None, 3, "was killed by SIGSEGV", ["Segmentation fault"])
            served.pipeline.workers = {"thinker": worker}
            served.pipeline.problem = "the thinker is not there"
            code, body = await served.get("/health")
            assert (code, body["status"], body["problem"]) == (503, status, "the thinker is not there")
            assert body["workers"]["thinker"]["last_words"] == ["Segmentation fault"]

    async def test_is_200_while_a_replica_is_missing_and_every_request_can_be_answered(self):
        async with serving(ScriptedPipeline(["Hello"])) as served:
            await served.ready()
            served.pipeline.degraded = "worker code2wav@1 was killed by SIGKILL, and is being restarted"
            status, body = await served.get("/health")
            assert (status, body["status"], body["problem"]) == (200, "degraded", served.pipeline.degraded)
            assert (await served.post(HELLO))[0] == 200
            async with served.session.get(f"{served.url}/metrics") as page:
                assert "omni_healthy 1.0" in (await page.text()).splitlines()

    async def test_shows_the_stages(self):
        async with serving() as served:
            served.pipeline.stats = {"thinker": StageStats(live_requests=2, received=7)}
            _, body = await served.get("/health")
        assert body["stages"] == {"thinker": {"live_requests": 2, "received": 7}}


class TestMetrics:
    @staticmethod
    async def page(served) -> list[str]:
        async with served.session.get(f"{served.url}/metrics") as response:
            assert response.content_type == "text/plain"
            return (await response.text()).splitlines()

    async def test_count_requests_tokens_and_time(self):
        async with serving() as served:
            await served.post(HELLO)
            await served.post(HELLO | {"temperature": 9})
            lines = await self.page(served)
        for line in (
            'omni_requests_total{outcome="ok"} 1.0',
            'omni_requests_total{outcome="refused"} 1.0',
            'omni_errors_total{code="invalid_value"} 1.0',
            "omni_prompt_tokens_total 11.0",
            "omni_completion_tokens_total 3.0",
            "omni_cached_tokens_total 4.0",
            'omni_media_tokens_total{kind="image"} 5.0',
            "omni_time_to_first_text_seconds_count 1.0",
            "omni_request_seconds_count 2.0",
            "omni_requests_in_flight 0.0",
        ):
            assert line in lines

    async def test_show_a_request_in_flight(self):
        async with serving(ScriptedPipeline()) as served:
            asked = asyncio.create_task(served.post(HELLO))
            request_id = await served.pipeline.submitted.get()
            assert "omni_requests_in_flight 1.0" in await self.page(served)
            served.pipeline.say_all(request_id, ["x"])
            await asked

    async def test_measure_the_time_between_pieces_of_text(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline) as served, served.openai() as client:
            asked = asyncio.create_task(
                client.chat.completions.create(model="x", messages=HELLO["messages"], stream=True)
            )
            request_id = await pipeline.submitted.get()
            pipeline.say(request_id, "a")
            stream = await asked
            for text in ("", "a"):
                assert (await anext(stream)).choices[0].delta.content == text
            pipeline.say_all(request_id, ["b"])
            [_ async for _ in stream]
            assert "omni_inter_text_seconds_count 1.0" in await self.page(served)

    async def test_show_the_stages(self):
        async with serving() as served:
            served.pipeline.stats = {
                "thinker": StageStats(live_requests=2, steps=9, busy_seconds=1.5, extra={"kv-tokens": 64.0}),
                "decode": StageStats(live_requests=1),
            }
            lines = await self.page(served)
        for line in (
            'omni_stage_live_requests{stage="thinker"} 2.0',
            'omni_stage_live_requests{stage="decode"} 1.0',
            'omni_stage_steps_total{stage="thinker"} 9.0',
            'omni_stage_busy_seconds_total{stage="thinker"} 1.5',
            'omni_stage_figure{figure="kv-tokens",stage="thinker"} 64.0',
        ):
            assert line in lines


class TestErrors:
    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/v2", 404, "not_found"),
            ("POST", "/v1/completions", 404, "not_found"),
            ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
            ("DELETE", "/health", 405, "method_not_allowed"),
        ],
    )
    async def test_of_routing_have_the_openai_form(self, method, path, status, code):
        async with serving() as served, served.session.request(method, served.url + path) as response:
            body = await response.json()
            assert (response.status, response.content_type) == (status, "application/json")
            assert ("Allow" in response.headers) == (status == 405)
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert body["error"]["code"] == code

    @pytest.mark.parametrize(
        ("data", "headers", "status", "code"),
        [
            (b"{", JSON, 400, "invalid_json"),
            (b"{}", JSON, 400, "missing_required_parameter"),
            (b"{}", {"Content-Type": "text/plain"}, 415, "invalid_content_type"),
            (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "invalid_content_type"),
            (b" " * 2000, JSON, 413, "body_too_large"),
            (gzip.compress(b"{}"), JSON | {"Content-Encoding": "gzip"}, 415, "invalid_content_encoding"),
        ],
    )
    async def test_of_bodies_have_the_openai_form(self, data, headers, status, code):
        async with serving(limits={"body_bytes": 1999}) as served:
            answer = await served.post(data, headers=headers)
        assert (answer[0], answer[1]["error"]["code"]) == (status, code)

    async def test_of_a_chunked_body_that_grows_too_large_are_413(self):
        async def pieces():
            for _ in range(10):
                yield b" " * 1000

        async with (
            serving(limits={"body_bytes": 5000}) as served,
            served.session.post(f"{served.url}/v1/chat/completions", data=pieces(), headers=JSON) as response,
        ):
            assert response.status == 413
            assert (await response.json())["error"]["code"] == "body_too_large"

    @pytest.mark.parametrize(
        ("unit", "status", "code"),
        [
            (b"[],", 400, "too_many_values"),
            (b"[", 400, "invalid_json"),
            (b"1", 400, "invalid_json"),
            (b'"' + b"x" * 999 + b'" ', 413, "text_too_large"),
        ],
    )
    async def test_of_a_body_of_heavy_structure_come_before_its_end(self, unit, status, code):
        async def pieces():
            yield b'{"messages": ['
            while not answered:
                yield unit * (8192 // len(unit))

        answered = False
        async with (
            serving(limits={"text_bytes": 500_000}) as served,
            served.session.post(f"{served.url}/v1/chat/completions", data=pieces(), headers=JSON) as response,
        ):
            answered = True
            assert response.status == status
            assert (await response.json())["error"]["code"] == code

    async def test_of_broken_chunks_are_400(self):
        async with serving() as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n".encode())
            assert (await reader.readline()).split()[1] == b"400"
            writer.close()

    async def test_that_nobody_expected_are_500_and_tell_nothing(self, caplog):
        pipeline = ScriptedPipeline()

        def broken(*_, **__):
            raise RuntimeError("the secret of the server")

        async with serving(pipeline) as served:
            assert (await served.get("/health"))[0] == 200
            pipeline.submit = broken
            status, body = await served.post(HELLO)
        assert (status, body["error"]["code"], body["error"]["type"]) == (500, "internal_error", "server_error")
        assert "secret" not in json.dumps(body)
        assert "the secret of the server" in caplog.text


class TestAdmission:
    async def test_refuses_what_is_too_much_and_says_when_to_retry(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, limits={"requests": 2, "queued": 0}) as served, served.openai() as client:
            running = [asyncio.create_task(served.post(HELLO)) for _ in range(2)]
            ids = [await pipeline.submitted.get() for _ in running]
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model="x", messages=HELLO["messages"])
            assert caught.value.response.headers["Retry-After"] == "1"
            assert caught.value.code == "too_many_requests"
            for request_id in ids:
                pipeline.say_all(request_id, ["fine"])
            assert [status for status, _ in await asyncio.gather(*running)] == [200, 200]

    async def test_lets_a_request_wait_for_a_place(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, limits={"requests": 1}) as served:
            running = asyncio.create_task(served.post(HELLO))
            request_id = await pipeline.submitted.get()
            waiting = asyncio.create_task(served.post(HELLO))
            while "omni_requests_in_flight 2.0" not in await TestMetrics.page(served):
                pass
            assert pipeline.submitted.empty()
            pipeline.say_all(request_id, ["fine"])
            pipeline.say_all(await pipeline.submitted.get(), ["fine"])
            assert [(await asked)[0] for asked in (running, waiting)] == [200, 200]

    async def test_forgets_a_client_that_leaves_while_it_waits(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, limits={"requests": 1, "queued": 1}) as served:
            running = asyncio.create_task(served.post(HELLO))
            request_id = await pipeline.submitted.get()
            _, writer = await served.connect(HELLO)
            while "omni_requests_in_flight 2.0" not in await TestMetrics.page(served):
                pass
            writer.close()
            while "omni_requests_in_flight 1.0" not in await TestMetrics.page(served):
                pass
            waiting = asyncio.create_task(served.post(HELLO))  # the queue has room for the request
            pipeline.say_all(request_id, ["fine"])
            pipeline.say_all(await pipeline.submitted.get(), ["fine"])
            assert [(await asked)[0] for asked in (running, waiting)] == [200, 200]

    async def test_clients_are_told_apart_by_their_keys(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, api_keys=["a", "b"], limits={"requests": 1}) as served:
            headers = [JSON | {"Authorization": f"Bearer {key}"} for key in "aaab"]
            asked = []
            for number, header in enumerate(headers):
                asked.append(asyncio.create_task(served.post(HELLO | {"seed": number}, headers=header)))
                while f"omni_requests_in_flight {number + 1}.0" not in await TestMetrics.page(served):
                    pass
            order = []
            for _ in asked:
                request_id = await pipeline.submitted.get()
                order.append(pipeline.bodies[request_id].thinker.seed)
                pipeline.say_all(request_id, ["fine"])
            await asyncio.gather(*asked)
        assert order == [0, 1, 3, 2]

    async def test_refuses_what_needs_a_full_stage_and_takes_what_does_not(self):
        pipeline = ScriptedPipeline()
        spoken = HELLO | {"modalities": ["text", "audio"]}
        async with serving(pipeline, speaks=True, limits={"stage_requests": {"code2wav": 1}}) as served:
            speaking = asyncio.create_task(served.post(spoken))
            request_id = await pipeline.submitted.get()
            status, body = await served.post(spoken)
            assert (status, body["error"]["code"]) == (429, "too_many_requests")
            pipeline.answer = ["x"]
            assert (await served.post(HELLO))[0] == 200
            pipeline.say_all(request_id, ["fine"])
            assert (await speaking)[0] == 200
            assert (await served.post(spoken))[0] == 200

    async def test_streamed_speech_waits_until_it_can_be_played_and_other_answers_do_not(self):
        pipeline = ScriptedPipeline()
        spoken = HELLO | {"modalities": ["text", "audio"], "audio": {"voice": "chelsie", "format": "pcm16"}}
        streamed = spoken | {"stream": True}

        async def listen() -> int:
            async with served.session.post(f"{served.url}/v1/chat/completions", json=streamed) as response:
                await response.read()
                return response.status

        async with serving(pipeline, speaks=True, limits={"gapless_speech": True, "queued": 1}) as served:
            await served.ready()
            first = [asyncio.create_task(listen()) for _ in range(FIRST_VOICES)]
            speaking = [await pipeline.submitted.get() for _ in first]
            waiting = asyncio.create_task(listen())
            await until_voices(served, speaking=FIRST_VOICES, waiting=1)
            async with served.session.post(f"{served.url}/v1/chat/completions", json=streamed) as response:
                assert (response.status, response.headers["Retry-After"]) == (429, "1")
            for body in (HELLO, spoken):
                asked = asyncio.create_task(served.post(body))
                pipeline.say_all(await pipeline.submitted.get(), ["fine"])
                assert (await asked)[0] == 200
            assert pipeline.submitted.empty()
            pipeline.say_all(speaking[0], ["fine"])
            speaking.append(await pipeline.submitted.get())
            for request_id in speaking[1:]:
                pipeline.say_all(request_id, ["fine"])
            assert await asyncio.gather(*first, waiting) == [200] * (FIRST_VOICES + 1)
            await until_voices(served, speaking=0, waiting=0)

    async def test_bounds_the_bytes_of_all_requests_until_their_answers_begin(self):
        pipeline = ScriptedPipeline()
        large = {"messages": [{"role": "user", "content": "x" * 6000}]}
        async with serving(pipeline, limits={"held_bytes": 20_000}) as served:
            first = asyncio.create_task(served.post(large | {"stream": False}))
            request_id = await pipeline.submitted.get()
            status, body = await served.post(large)
            assert (status, body["error"]["code"]) == (429, "too_many_requests")
            pipeline.say(request_id, "Hel")
            second = asyncio.create_task(served.post(large))
            pipeline.say_all(await pipeline.submitted.get(), ["fine"])
            pipeline.finish(request_id)
            assert [(await asked)[0] for asked in (first, second)] == [200, 200]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_bytes_of_clients_that_left_count_until_the_pipeline_has_forgotten_them(self, stream):
        pipeline = ScriptedPipeline()
        large = {"messages": [{"role": "user", "content": "x" * 6000}], "stream": stream}
        ids = set()
        async with serving(pipeline, limits={"held_bytes": 40_000}) as served:
            for _ in range(3):  # a client repeatedly sends a request and leaves, while the pipeline is busy
                pipeline.forgets = False
                for _ in range(3):
                    _, writer = await served.connect(large)
                    ids.add(await pipeline.submitted.get())
                    writer.close()
                    await pipeline.aborted.get()
                async with asyncio.timeout(10):
                    status, body = await served.post(large)
                assert (status, body["error"]["code"]) == (429, "too_many_requests")
                assert "omni_requests_leaving 3.0" in await TestMetrics.page(served)
                pipeline.forgets = True
                while pipeline.unforgotten:
                    pipeline.unforgotten.popitem()[1]()
                page = await TestMetrics.page(served)
                assert "omni_requests_leaving 0.0" in page
                assert "omni_held_bytes 0.0" in page
                asked = asyncio.create_task(served.post(large | {"stream": False}))
                ids.add(last := await pipeline.submitted.get())
                pipeline.say_all(last, ["fine"])
                assert (await asked)[0] == 200
        assert len(ids) == 12, "every request has an id of its own"

    async def test_clients_that_left_keep_their_places_until_the_pipeline_has_forgotten_them(self):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, limits={"requests": 2, "queued": 0}) as served:
            pipeline.forgets = False
            for _ in range(2):
                _, writer = await served.connect(HELLO)
                await pipeline.submitted.get()
                writer.close()
                await pipeline.aborted.get()
            async with asyncio.timeout(10):
                assert (await served.post(HELLO))[0] == 429
            pipeline.unforgotten.popitem()[1]()
            pipeline.answer = ["x"]
            assert (await served.post(HELLO))[0] == 200
            pipeline.unforgotten.popitem()[1]()

    async def test_requests_wait_for_the_memory_of_their_media(self):
        pipeline = ScriptedPipeline()
        granted: asyncio.Queue[str] = asyncio.Queue()

        def claim(request_id: str) -> None:
            pipeline.claimed(Claim(request_id, "preprocessing", 60, 20), lambda: granted.put_nowait(request_id))

        async with serving(pipeline, limits={"decoded_bytes": 114}) as served:
            asked = [asyncio.create_task(served.post(HELLO)) for _ in range(2)]
            first, second = [await pipeline.submitted.get() for _ in asked]
            claim(first)
            claim(second)
            page = await TestMetrics.page(served)
            assert "omni_decoded_bytes 80.0" in page
            assert "omni_requests_waiting_for_memory 1.0" in page
            assert await granted.get() == first
            pipeline.say(first, "Hel")
            assert await granted.get() == second
            assert "omni_decoded_bytes 100.0" in await TestMetrics.page(served), "20 last until the end"
            pipeline.finish(first)
            pipeline.say_all(second, ["fine"])
            assert [(await each)[0] for each in asked] == [200, 200]
            assert "omni_decoded_bytes 0.0" in await TestMetrics.page(served)

    async def test_bounds_the_bytes_of_media_with_the_rest(self):
        async with serving(limits={"held_bytes": 20_000}) as served:
            media = {"images": ["data:;base64," + "A" * 6000]}
            status, body = await served.post(HELLO | media)
            assert (status, body["error"]["code"]) == (429, "too_many_requests")
            assert (await served.post(HELLO))[0] == 200

    async def test_bounds_the_length_of_answers(self):
        async with serving(limits={"output_tokens": 5, "speech_tokens": 7}, speaks=True) as served:
            status, body = await served.post(HELLO | {"max_tokens": 6})
            assert (status, body["error"]["param"]) == (400, "max_tokens")
            assert (await served.post(HELLO | {"modalities": ["text", "audio"]}))[0] == 200
            [request] = [served.pipeline.bodies[await served.pipeline.submitted.get()]]
        assert (request.thinker.max_tokens, request.speech.talker.max_tokens) == (5, 7)

    @pytest.mark.parametrize("stream", [False, True])
    async def test_gives_a_place_back_however_a_request_ends(self, stream):
        pipeline = ScriptedPipeline()
        async with serving(pipeline, limits={"requests": 1}) as served:
            _, writer = await served.connect(HELLO | {"stream": stream})
            await pipeline.submitted.get()
            writer.close()
            await pipeline.aborted.get()
            asked = asyncio.create_task(served.post(HELLO))
            pipeline.fail(await pipeline.submitted.get(), ErrorInfo(status=400, message="No."))
            assert (await asked)[0] == 400
            assert (await served.post(HELLO | {"n": 99}))[0] == 400
            pipeline.answer = ["x"]
            assert (await served.post(HELLO))[0] == 200


class TestKeys:
    @pytest.mark.parametrize(
        "header", [None, "Bearer wrong", "Bearer ", "Basic right", "right", "Bearer rightt", "Bearer ä"]
    )
    async def test_are_needed_when_there_are_some(self, header):
        headers = JSON | ({"Authorization": header} if header else {})
        async with serving(api_keys=["right", "second"]) as served:
            status, body = await served.post(HELLO, headers=headers)
            assert served.pipeline.submitted.empty()
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")

    @pytest.mark.parametrize("key", ["right", "second"])
    async def test_any_of_them_opens(self, key):
        async with serving(api_keys=["right", "second"]) as served, served.openai(key) as client:
            assert (await client.models.list()).data

    async def test_are_reported_to_the_openai_client_as_such(self):
        async with serving(api_keys=["right"]) as served, served.openai("wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()

    async def test_are_not_needed_for_health_and_metrics(self):
        async with serving(api_keys=["right"]) as served:
            for path in ("/health", "/metrics", "/"):
                async with served.session.get(served.url + path) as response:
                    assert response.status == 200


class TestRequestId:
    @staticmethod
    async def returned(served, body, **headers) -> str:
        async with served.session.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as response:
            await response.read()
            return response.headers["X-Request-Id"]

    @pytest.mark.parametrize("body", [HELLO, HELLO | {"stream": True}, {}])
    async def test_of_the_client_is_returned(self, body):
        async with serving() as served:
            assert await self.returned(served, body, **{"X-Request-Id": "trace-1.2:3"}) == "trace-1.2:3"

    @pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b'])
    async def test_that_is_not_sane_is_replaced(self, given):
        async with serving() as served:
            returned = await self.returned(served, HELLO, **{"X-Request-Id": given})
        assert len(returned) == 32

    async def test_is_logged_with_the_outcome_but_without_content(self, caplog):
        caplog.set_level(logging.INFO)
        async with serving() as served:
            await self.returned(served, HELLO, **{"X-Request-Id": "trace-1"})
        [record] = [record for record in caplog.records if record.name == "gateway.access"]
        line = TextFormatter("main").format(record)
        assert "POST /v1/chat/completions status=200" in line
        assert "request_id=trace-1" in line
        assert "status=200" in line
        assert "outcome=ok" in line
        assert "Hello" not in caplog.text


async def test_the_root_says_what_there_is():
    async with serving() as served:
        _, body = await served.get("/")
    assert body["endpoints"] == [
        "GET /", "GET /health", "GET /metrics", "GET /openapi.json", "GET /v1/audio/voices", "GET /v1/models",
        "GET /v1/models/{model}", "GET /v1/pipeline", "GET /v1/pipeline/timelines/{answer}", "GET /v1/realtime",
        "POST /v1/audio/speech", "POST /v1/audio/transcriptions", "POST /v1/audio/translations",
        "POST /v1/chat/completions", "POST /v1/realtime/client_secrets", "POST /v1/responses",
    ]  # fmt: skip
