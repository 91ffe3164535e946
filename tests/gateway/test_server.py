"""The life of a served gateway: it drains, it stops, and it stays light."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import pytest

from gateway import server
from omni_pipeline.config import Server
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


async def test_a_request_that_outlasts_the_drain_is_cut_off_and_aborted(monkeypatch):
    monkeypatch.setattr(server, "DRAIN_SECONDS", 0.1)
    pipeline = ScriptedPipeline()
    async with serving(pipeline) as served:
        reader, writer = await served.connect(HELLO)
        request_id = await pipeline.submitted.get()
        served.stopping.set()
        assert await pipeline.aborted.get() == request_id
        assert await reader.read() == b""
        writer.close()


async def test_the_socket_is_closed_at_the_end():
    async with serving() as served:
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served.port))


async def test_a_bug_in_the_warm_up_ends_the_server_loudly():
    pipeline = ScriptedPipeline()

    def broken(request_id, body):
        raise RuntimeError("bug")

    pipeline.submit = broken
    serving_forever = server.run(
        pipeline,
        Server(),
        model_path="x",
        checkpoint="x",
        stages=(),
        listen_socket=socket.create_server(("127.0.0.1", 0)),
        stopping=asyncio.Event(),
    )
    with pytest.raises(ExceptionGroup) as caught:
        await serving_forever
    assert [str(error) for error in caught.value.exceptions] == ["bug"]


def test_the_main_process_imports_nothing_heavy():
    heavy = ("torch", "numpy", "av", "transformers", "sglang")
    code = f"import sys, gateway.server; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
