"""Clients watch the pipeline, and fetch the timelines of their answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.serving import pipeline_watch
from omni_pipeline.supervision.worker_state import WorkerReport
from omni_pipeline.wire.counters import EdgeStats
from omni_pipeline.wire.messages import StageStats
from tests.gateway.scripted import HELLO, Served, serving


async def views(served: Served, count: int, **headers: str) -> list[dict[str, Any]]:
    """The first `count` events of a stream."""
    found: list[dict[str, Any]] = []
    async with served.session.get(f"{served.url}/v1/pipeline", headers=headers) as response:
        assert response.status == 200
        while len(found) < count:
            line = await response.content.readline()
            if line.startswith(b"data: "):
                found.append(json.loads(line.removeprefix(b"data: ")))
    return found


def working(steps: int) -> StageStats:
    """A thinker that has computed `steps` batches of two requests, each in a tenth of a second."""
    stats = StageStats(live_requests=2, steps=steps, busy_seconds=steps / 10)
    stats.extra = {"kv_tokens_used": 30.0, "kv_tokens_limit": 100.0, "queued_requests": 1.0}
    for _ in range(steps):
        stats.batch_sizes.add(2)
    return stats


async def test_a_view_shows_each_stage_and_edge() -> None:
    async with serving() as served:
        await served.ready()
        served.pipeline.workers = {"thinker": WorkerReport("ready", ("thinker",), 7, 1, None, [])}
        served.pipeline.stats = {"thinker": working(1)}
        served.pipeline.edges = [EdgeStats("thinker", "decode", messages=5)]
        watching = asyncio.create_task(views(served, 4))
        await asyncio.sleep(pipeline_watch.EVERY_SECONDS / 2)
        served.pipeline.stats = {"thinker": working(3)}
        served.pipeline.edges = [EdgeStats("thinker", "decode", messages=9)]
        first, *_, last = await watching
    assert (first["status"], first["requests"]) == ("ok", 0)
    [before], [now] = first["stages"], last["stages"]
    assert (before["busy"], before["batch"], before["steps"]) == (0.0, None, 0.0)
    assert (now["state"], now["restarts"], now["live"], now["queued"], now["batch"]) == ("ready", 1, 2, 1, 2.0)
    assert (now["kv_used"], now["kv_limit"]) == (30, 100)
    assert 0 < now["busy"] < 0.4
    [edge] = last["edges"]
    assert (edge["source"], edge["target"]) == ("thinker", "decode")
    assert 0 < edge["messages"] < 8


async def test_a_worker_that_has_ended_is_shown_with_its_end() -> None:
    async with serving() as served:
        await served.ready()
        served.pipeline.problem = "the thinker is gone"
        served.pipeline.workers = {"t": WorkerReport("restarting", ("thinker",), None, 1, "was killed by SIGKILL", [])}
        [view] = await views(served, 1)
    assert (view["status"], view["problem"]) == ("unavailable", "the thinker is gone")
    [stage] = view["stages"]
    assert (stage["state"], stage["last_end"], stage["live"]) == ("restarting", "was killed by SIGKILL", 0)


async def test_how_a_worker_ended_is_shown_also_after_its_restart() -> None:
    async with serving() as served:
        await served.ready()
        report = WorkerReport("ready", ("thinker",), 7, 1, None, [], previous_end="was killed by SIGKILL")
        served.pipeline.workers = {"t": report}
        [view] = await views(served, 1)
    [stage] = view["stages"]
    assert (stage["state"], stage["last_end"]) == ("ready", "was killed by SIGKILL")


async def test_it_needs_a_key_where_others_do() -> None:
    async with serving(api_keys=["right"]) as served:
        assert (await served.get("/v1/pipeline"))[0] == 401
        assert await views(served, 1, Authorization="Bearer right")


async def test_the_number_of_streams_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_watch, "MOST_STREAMS", 1)
    async with serving() as served:
        async with served.session.get(f"{served.url}/v1/pipeline") as response:
            assert response.status == 200
            status, body = await served.get("/v1/pipeline")
        assert (status, body["error"]["code"]) == (429, "too_many_requests")


async def test_a_client_gets_the_timeline_that_it_has_asked_for() -> None:
    async with serving() as served:
        headers = {"Content-Type": "application/json", "X-Omni-Timeline": "keep"}
        _, answer = await served.post(HELLO, headers=headers)
        status, found = await served.get(f"/v1/pipeline/timelines/{answer['id']}")
    assert (status, found["id"]) == (200, answer["id"])
    assert found["figures"]["outcome"] == "ok"
    [track] = found["tracks"]
    assert track["stage"] == "gateway"


async def test_there_is_no_timeline_of_other_answers() -> None:
    async with serving() as served:
        _, answer = await served.post(HELLO)
        status, body = await served.get(f"/v1/pipeline/timelines/{answer['id']}")
    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "timeline_not_found", "answer")


async def test_the_replicas_of_a_stage_are_one_stage_in_the_worst_state() -> None:
    async with serving() as served:
        await served.ready()
        served.pipeline.workers = {
            "t@0": WorkerReport("ready", ("thinker",), 7, 0, None, []),
            "t@1": WorkerReport("restarting", ("thinker",), None, 2, "was killed by SIGKILL", []),
        }
        served.pipeline.edges = [EdgeStats("a", "thinker", messages=5), EdgeStats("a", "thinker", replica=1)]
        [view] = await views(served, 1)
    [stage] = view["stages"]
    assert (stage["worker"], stage["state"], stage["restarts"]) == ("t@1", "restarting", 2)
    assert (stage["replicas"], stage["replicas_ready"], stage["last_end"]) == (2, 1, "was killed by SIGKILL")
    assert len(view["edges"]) == 1
