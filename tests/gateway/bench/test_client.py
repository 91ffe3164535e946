"""Tests how the bench's client sends one request and records its timeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gateway.bench.client import Client
from gateway.bench.timeline import RequestTimes
from omni_pipeline.errors import StartupError
from omni_pipeline.os_process import free_port
from tests.gateway.bench.scripted_server import (
    DONE,
    Refusal,
    Step,
    WholeAnswer,
    ending,
    in_content,
    ours,
    scripted,
    text,
    whole,
)

PAUSE = 0.01


async def ask(answer: Sequence[Step] | Refusal, **options: Any) -> RequestTimes:
    async with scripted(answer) as server, Client(server.url, **options) as client:
        return await client.ask(b"{}")


async def test_each_text_has_its_time() -> None:
    timeline = await ask([text("a"), PAUSE, text("b"), PAUSE, text("c"), *ending(3)])
    assert timeline.failure is None
    assert len(timeline.texts) == 3
    assert 0 < timeline.texts[0] < timeline.texts[1] < timeline.texts[2] <= timeline.ended
    assert (timeline.tokens, timeline.finish_reason) == (3, "length")


@pytest.mark.parametrize("sound", [ours, in_content], ids=["delta.audio", "delta.content"])
async def test_each_sound_has_its_time_and_length(sound: Any) -> None:
    timeline = await ask([text("a"), PAUSE, sound(0.5), PAUSE, text("b"), PAUSE, sound(0.25), *ending(2)])
    assert timeline.failure is None
    assert [chunk.seconds for chunk in timeline.sounds] == [0.5, 0.25]
    first, second = timeline.sounds
    assert timeline.texts[0] < first.at < timeline.texts[1] < second.at
    assert timeline.audio_seconds == 0.75
    assert timeline.real_time_factor == second.at / 0.75


async def test_events_without_content_leave_no_mark() -> None:
    timeline = await ask([b": keep-alive\n\n", text(""), *ending(0)])
    assert (timeline.texts, timeline.sounds, timeline.failure) == ([], [], None)


async def test_texts_are_counted_where_usage_is_missing() -> None:
    timeline = await ask([text("a"), text("b"), DONE])
    assert (timeline.tokens, timeline.text_tokens) == (None, 2)


async def ask_whole(answer: WholeAnswer | Refusal) -> RequestTimes:
    async with scripted(answer) as server, Client(server.url) as client:
        return await client.ask(b"{}", streamed=False)


async def test_whole_answer_has_only_its_end_and_its_lengths() -> None:
    timeline = await ask_whole(whole(3, 0.5))
    assert timeline.failure is None
    assert timeline.ended > 0
    assert (timeline.first_text, timeline.first_audio, timeline.real_time_factor) == (None, None, None)
    assert (timeline.text_tokens, timeline.audio_seconds, timeline.finish_reason) == (3, 0.5, "length")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (WholeAnswer({"object": "list"}), "invalid_answer"),
        (Refusal(429, {"error": {"message": "full", "code": "too_many_requests"}}), "too_many_requests"),
    ],
    ids=["no answer", "refused"],
)
async def test_failure_of_a_whole_answer_has_its_code(answer: WholeAnswer | Refusal, code: str) -> None:
    timeline = await ask_whole(answer)
    assert timeline.failure is not None
    assert timeline.failure.code == code


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Refusal(429, {"error": {"message": "full", "code": "too_many_requests"}}), "too_many_requests"),
        (Refusal(502, "bad gateway"), "http_502"),
        ([text("a"), {"error": {"message": "gone", "code": "worker_lost"}}], "worker_lost"),
        ([text("a")], "stream_cut"),
        ([b"data: nonsense\n\n", DONE], "invalid_stream"),
    ],
    ids=["refused", "not the API's error", "error in the stream", "cut", "nonsense"],
)
async def test_failure_has_its_code(answer: Sequence[Step] | Refusal, code: str) -> None:
    timeline = await ask(answer)
    assert timeline.failure is not None
    assert timeline.failure.code == code


async def test_what_came_before_a_failure_is_kept() -> None:
    assert len((await ask([text("a"), text("b")])).texts) == 2


async def test_slow_answer_is_a_timeout() -> None:
    timeline = await ask([text("a"), 30.0, *ending(1)], timeout=0.3)
    assert timeline.failure is not None
    assert timeline.failure.code == "timeout"
    assert len(timeline.texts) == 1


async def test_absent_server_is_a_failed_connection() -> None:
    async with Client(f"http://127.0.0.1:{free_port()}") as client:
        timeline = await client.ask(b"{}")
        assert timeline.failure is not None
        assert timeline.failure.code == "connection_failed"
        with pytest.raises(StartupError, match="Check --url"):
            await client.model()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_address_may_end_in_v1(suffix: str) -> None:
    async with scripted(ending(0)) as server, Client(server.url + suffix) as client:
        assert await client.model() == "scripted"
        assert (await client.ask(b"{}")).failure is None


async def test_key_is_sent_as_bearer_token() -> None:
    async with scripted(ending(0)) as server, Client(server.url, api_key="secret") as client:
        await client.ask(b"{}")
        assert server.headers[0]["Authorization"] == "Bearer secret"


async def test_connection_serves_one_request_after_the_other() -> None:
    async with scripted([text("a"), DONE, PAUSE]) as server, Client(server.url) as client:
        for _ in range(3):
            assert (await client.ask(b"{}")).failure is None
    assert len(server.peers) == 1
