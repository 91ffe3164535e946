"""Tests that a served gateway drains, stops, and imports few modules."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import pytest

from gateway.serving import server
from omni_pipeline.config.schema import Server, Trace
from omni_pipeline.errors import ErrorInfo
from tests.gateway.scripted import HELLO, ScriptedPipeline, serving


async def test_a_request_in_progress_is_finished_when_stopping():
    pipeline = ScriptedPipeline()
    async with serving(pipeline) as served:
        asked = asyncio.create_task(served.post(HELLO))
        request_id = await pipeline.submitted.get()
        served.stopping.set()
        pipeline.say_all(request_id, ["fine"])
        assert (await asked)[0] == 200


async def test_no_new_request_is_taken_when_stopping():
    pipeline = ScriptedPipeline()
    async with serving(pipeline) as served:
        running = asyncio.create_task(served.post(HELLO))
        request_id = await pipeline.submitted.get()
        served.stopping.set()
        status, health = await served.get("/health")
        while health["status"] != "stopping":
            status, health = await served.get("/health")
        refused, body = await served.post(HELLO)
        pipeline.say_all(request_id, ["fine"])
        assert (await running)[0] == 200
    assert (status, refused, body["error"]["code"]) == (503, 503, "shutting_down")


async def test_a_request_that_waits_to_be_let_in_is_refused_when_stopping():
    pipeline = ScriptedPipeline()
    async with serving(pipeline, limits={"requests": 1}) as served:
        running = asyncio.create_task(served.post(HELLO))
        request_id = await pipeline.submitted.get()
        waiting = asyncio.create_task(served.post(HELLO))
        await asyncio.sleep(0.05)
        served.stopping.set()
        status, body = await waiting
        assert (status, body["error"]["code"]) == (503, "shutting_down")
        pipeline.say_all(request_id, ["fine"])
        assert (await running)[0] == 200


async def test_a_request_that_outlasts_the_drain_ends_with_an_error_and_is_aborted():
    pipeline = ScriptedPipeline()
    async with serving(pipeline, drain_seconds=0.1) as served:
        asked = asyncio.create_task(served.post(HELLO))
        request_id = await pipeline.submitted.get()
        served.stopping.set()
        assert await pipeline.aborted.get() == request_id
        status, body = await asked
        assert (status, body["error"]["code"]) == (503, "shutting_down")


async def test_a_stream_that_outlasts_the_drain_ends_with_an_error():
    pipeline = ScriptedPipeline()
    async with serving(pipeline, drain_seconds=0.1) as served:
        reader, writer = await served.connect({**HELLO, "stream": True})
        pipeline.say(await pipeline.submitted.get(), "half")
        await reader.readuntil(b"half")
        served.stopping.set()
        assert b'"code":"shutting_down"' in await reader.read()
        writer.close()


async def test_a_second_request_to_stop_ends_everything_with_an_error():
    pipeline = ScriptedPipeline()
    async with serving(pipeline, drain_seconds=1000) as served:
        asked = asyncio.create_task(served.post(HELLO))
        await pipeline.submitted.get()
        served.stopping.set()
        served.task.cancel()
        status, body = await asked
        assert (status, body["error"]["code"]) == (503, "shutting_down")


async def test_a_request_waits_for_its_stages_while_they_are_being_restarted():
    pipeline = ScriptedPipeline(["Hello"])
    async with serving(pipeline) as served:
        await served.ready()
        pipeline.working.clear()
        asked = asyncio.create_task(served.post(HELLO))
        assert await pipeline.waiting.get() == {"preprocessing", "mm_aggregate", "thinker", "decode"}
        assert pipeline.submitted.empty()
        pipeline.working.set()
        assert (await asked)[0] == 200


async def test_a_lost_worker_is_followed_by_another_warm_up():
    pipeline = ScriptedPipeline()
    async with serving(pipeline) as served:
        await served.ready()
        assert await pipeline.warmups.get() == "warm-up-1"
        pipeline.answers_warmup = False
        pipeline.lost(frozenset({"thinker"}), ErrorInfo(status=503, message="Gone."))
        assert await pipeline.warmups.get() == "warm-up-2"
        status, health = await served.get("/health")
        assert (status, health["status"]) == (503, "starting")
        pipeline.say_all("warm-up-2", [])
        await served.ready()
        assert (await served.get("/health"))[0] == 200


async def test_the_socket_is_closed_at_the_end():
    async with serving() as served:
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served.port))


async def test_a_bug_in_the_warm_up_ends_the_server_loudly():
    pipeline = ScriptedPipeline()

    def broken(*_, **__):
        raise RuntimeError("bug")

    pipeline.submit = broken
    serving_forever = server.run(
        pipeline,
        Server(),
        model_path="x",
        checkpoint="x",
        stages=(),
        trace=Trace(),
        listen_socket=socket.create_server(("127.0.0.1", 0)),
        ready=lambda: None,
        stopping=asyncio.Event(),
    )
    with pytest.raises(ExceptionGroup) as caught:
        await serving_forever
    assert [str(error) for error in caught.value.exceptions] == ["bug"]


def test_the_main_process_imports_nothing_heavy():
    heavy = ("torch", "numpy", "av", "transformers", "sglang")
    code = f"import sys, gateway.serving.server; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
