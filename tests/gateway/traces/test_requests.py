"""Tests the traces of requests over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.traces import traces
from omni_pipeline.config.schema import Trace
from omni_pipeline.errors import ErrorInfo
from tests.gateway.scripted import HELLO, ScriptedPipeline, serving


def documents(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(directory.iterdir())]


def slices(document: dict[str, Any]) -> list[str]:
    return [event["name"] for event in document["traceEvents"] if event["ph"] == "X"]


@pytest.mark.parametrize("stream", [False, True])
async def test_answered_request_says_what_the_gateway_did(tmp_path: Path, stream: bool) -> None:
    async with serving(trace=Trace(dir=str(tmp_path))) as served:
        await served.ready()
        async with served.session.post(f"{served.url}/v1/chat/completions", json=HELLO | {"stream": stream}) as answer:
            await answer.read()
    [document] = documents(tmp_path)
    assert {"request", "wait for admission", "read", "check", "submit", "write"} <= set(slices(document))
    assert document["otherData"]["outcome"] == "ok"
    assert document["otherData"]["completion_tokens"] == 3


async def test_trace_of_the_caller_is_named_in_the_log_and_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"Content-Type": "application/json", "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    async with serving(trace=Trace(dir=str(tmp_path))) as served:
        with caplog.at_level("INFO"):
            await served.post(HELLO, headers=headers)
    [document] = documents(tmp_path)
    assert document["otherData"]["trace_id"] == trace_id
    [record] = [record for record in caplog.records if record.name == "gateway.access"]
    assert record.__dict__["omni_fields"]["trace_id"] == trace_id


async def test_request_whose_client_leaves_is_traced_to_its_end(tmp_path: Path) -> None:
    async with serving(ScriptedPipeline(), trace=Trace(dir=str(tmp_path))) as served:
        _, writer = await served.connect(HELLO)
        await served.pipeline.submitted.get()
        writer.close()
        await served.pipeline.aborted.get()
    [document] = documents(tmp_path)
    assert document["otherData"]["outcome"] == "cancelled"


async def test_request_that_fails_says_why(tmp_path: Path) -> None:
    pipeline = ScriptedPipeline()
    async with serving(pipeline, trace=Trace(dir=str(tmp_path))) as served:
        asked = asyncio.create_task(served.post(HELLO))
        pipeline.fail(await pipeline.submitted.get(), ErrorInfo(status=503, message="Gone.", code="worker_lost"))
        assert (await asked)[0] == 503
    [document] = documents(tmp_path)
    assert (document["otherData"]["outcome"], document["otherData"]["code"]) == ("failed", "worker_lost")


async def test_request_that_is_refused_leaves_no_file(tmp_path: Path) -> None:
    async with serving(trace=Trace(dir=str(tmp_path))) as served:
        assert (await served.post(HELLO | {"temperature": 9}))[0] == 400
    assert documents(tmp_path) == []


async def test_collector_that_is_not_there_harms_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "PATIENCE_SECONDS", 0.1)
    nowhere = Trace(otlp_endpoint="http://127.0.0.1:9/v1/traces")  # the discard port, on which nobody listens
    async with serving(trace=nowhere) as served:
        assert (await served.post(HELLO))[0] == 200
