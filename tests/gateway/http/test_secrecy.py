"""The log, at any level, contains nothing that clients send: no key, text, address or media."""

from __future__ import annotations

import asyncio
import base64
import logging

import pytest

from omni_pipeline.errors import ErrorInfo
from tests.gateway.scripted import HELLO, ScriptedPipeline, serving

KEY = "key-that-nobody-may-see"
WORDS = "words-that-nobody-may-see"
PLACE = "place-that-nobody-may-see"
MEDIUM = base64.b64encode(b"medium-that-nobody-may-see" * 10).decode()
HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}

ASKED = [
    {"messages": [{"role": "user", "content": WORDS}]},
    {"messages": [{"role": "user", "content": WORDS}], "stream": True},
    HELLO | {"images": [f"data:image/png;base64,{MEDIUM}"]},
    HELLO | {"images": [f"data:image/png;base64,{MEDIUM}!"]},
    HELLO | {"images": [f"http://127.0.0.1/{PLACE}"]},
    HELLO | {"images": [f"http://{PLACE}.invalid/"]},
    HELLO | {"images": [f"/etc/{PLACE}"]},
    HELLO | {"audios": [PLACE]},
    HELLO | {WORDS: 1},
    HELLO | {"stop": [WORDS]},
    HELLO | {"user": WORDS, "metadata": {"a": WORDS}},
    HELLO | {"voice": WORDS},
    HELLO | {"modalities": [WORDS]},
]


def seen(caplog: pytest.LogCaptureFixture) -> list[str]:
    text = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    return [secret for secret in (KEY, WORDS, PLACE, MEDIUM[:40]) if secret in text]


@pytest.mark.parametrize("body", ASKED, ids=range(len(ASKED)))
async def test_of_requests(caplog, body):
    caplog.set_level(logging.DEBUG)
    async with (
        serving(api_keys=[KEY]) as served,
        served.session.post(f"{served.url}/v1/chat/completions", json=body, headers=HEADERS) as response,
    ):
        await response.read()
    assert "POST /v1/chat/completions" in caplog.text
    assert seen(caplog) == []


@pytest.mark.parametrize("given", [f"Bearer {KEY}x", f"Basic {KEY}", KEY])
async def test_of_refused_keys(caplog, given):
    caplog.set_level(logging.DEBUG)
    async with serving(api_keys=["another"]) as served:
        status, body = await served.post(HELLO, headers=HEADERS | {"Authorization": given})
    assert (status, KEY in str(body)) == (401, False)
    assert seen(caplog) == []


@pytest.mark.parametrize("fails", [False, True])
async def test_of_answers(caplog, fails):
    caplog.set_level(logging.DEBUG)
    pipeline = ScriptedPipeline()
    async with serving(pipeline) as served:
        asked = asyncio.create_task(served.post(HELLO))
        request_id = await pipeline.submitted.get()
        pipeline.say(request_id, WORDS)
        if fails:
            pipeline.fail(request_id, ErrorInfo(status=400, message=f"No: {WORDS}.", param=PLACE[:5]))
        else:
            pipeline.finish(request_id)
        await asked
    assert seen(caplog) == []


async def test_of_the_query_of_an_address(caplog):
    caplog.set_level(logging.DEBUG)
    async with serving() as served:
        await served.get(f"/v1/models?api_key={KEY}")
        await served.get(f"/v1/nothing?api_key={KEY}")
    assert seen(caplog) == []


async def test_a_path_cannot_write_lines_into_the_log(caplog):
    caplog.set_level(logging.DEBUG)
    async with serving() as served:
        await served.get("/v1/x%0A2026-01-01%20INFO%20forged%0D" + "y" * 1000)
    [line] = [record.getMessage() for record in caplog.records if record.name == "gateway.access"]
    assert "\n" not in line
    assert "\r" not in line
    assert len(line) < 500
