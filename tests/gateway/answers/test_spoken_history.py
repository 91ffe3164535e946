"""A request may name an earlier spoken answer by its id, while the server keeps the transcript."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import openai
import pytest

from gateway.answers.spoken_history import SpokenHistory
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import internal
from stages.messages import Text
from tests.gateway.answers.test_chat import events_of
from tests.gateway.scripted import HELLO, ScriptedPipeline, Served, serving, tone

ASK = HELLO | {"modalities": ["text", "audio"], "audio": {"format": "pcm16"}}
FORMS: list[dict[str, Any]] = [{}, {"content": None}, {"content": ""}, {"content": []}]


def speaking(text: str = "Hello") -> ScriptedPipeline:
    return ScriptedPipeline([text[:2], text[2:]], voice=[tone(1365), tone(3840, 1365)])


def naming(audio_id: str, **message: Any) -> dict[str, Any]:
    """A request with an earlier answer that is named by its id."""
    return {
        "messages": [*HELLO["messages"], {"role": "assistant", "audio": {"id": audio_id}} | message, *HELLO["messages"]]
    }


async def speech(served: Served, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """The `audio` of a spoken answer."""
    if not stream:
        status, body = await served.post(ASK | fields)
        assert status == 200, body
        return body["choices"][0]["message"]["audio"]
    audio: dict[str, Any] = {}
    for event in await events_of(served, ASK | fields):
        if event != "[DONE]":
            audio |= event["choices"][0]["delta"].get("audio", {})
    return audio


async def turns_of(served: Served, body: dict[str, Any]) -> Any:
    """The conversation that the pipeline gets for `body`."""
    while not served.pipeline.submitted.empty():
        served.pipeline.submitted.get_nowait()
    status, answer = await served.post(body)
    assert status == 200, answer
    return served.pipeline.bodies[served.pipeline.submitted.get_nowait()].turns


async def refusal(served: Served, audio_id: str) -> dict[str, Any]:
    status, body = await served.post(naming(audio_id))
    assert (status, body["error"]["code"]) == (404, "audio_not_found"), body
    assert body["error"]["param"] == "messages[1].audio.id"
    assert body["error"]["type"] == "invalid_request_error"
    return body["error"]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("modalities", [["text", "audio"], ["audio"]], ids="+".join)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_id_stands_for_the_transcript(stream, modalities, form):
    async with serving(speaking(), speaks=True) as served:
        audio = await speech(served, stream, modalities=modalities)
        named = await turns_of(served, naming(audio["id"], **form))
        written = [*HELLO["messages"], {"role": "assistant", "content": "Hello"}, *HELLO["messages"]]
        assert named == await turns_of(served, {"messages": written})
    assert named[1].content == [Text("Hello")]


async def test_an_answer_is_taken_back_as_openais_client_returned_it():
    async with serving(speaking(), speaks=True) as served, served.openai() as client:
        for modalities in (["text", "audio"], ["audio"]):
            ask = {"model": "any", "modalities": modalities, "audio": {"voice": "ethan", "format": "wav"}}
            first = await client.chat.completions.create(messages=HELLO["messages"], **ask)
            earlier = [*HELLO["messages"], first.choices[0].message, *HELLO["messages"]]
            second = await client.chat.completions.create(messages=earlier, **ask)
            assert second.choices[0].message.audio.transcript == "Hello"


@pytest.mark.parametrize(
    "message", [{"content": "Bye"}, {"content": [{"type": "text", "text": "Bye"}]}, {"refusal": "Bye"}]
)
async def test_an_id_is_not_looked_up_where_there_is_a_text(message):
    async with serving(speaking(), speaks=True) as served:
        turns = await turns_of(served, naming("audio_unknown", **message))
    assert turns[1].content == [Text("Bye")]


async def test_a_transcript_beside_the_id_counts():
    async with serving(speaking(), speaks=True) as served:
        turns = await turns_of(served, naming("", audio={"id": "audio_unknown", "transcript": "Bye"}))
    assert turns[1].content == [Text("Bye")]


@pytest.mark.parametrize("audio_id", ["", "audio_unknown", "audio_" + "0" * 32, "x" * 100_000])
async def test_an_unknown_id_is_404(audio_id):
    async with serving(speaking(), speaks=True) as served:
        error = await refusal(served, audio_id)
    assert len(error["message"]) < 300
    assert "send its text as 'content' instead" in error["message"]


async def test_an_id_that_has_expired_is_404():
    async with serving(speaking(), speaks=True, limits={"transcript_seconds": 1e-6}) as served:
        audio = await speech(served)
        assert audio["expires_at"] <= time.time()
        await refusal(served, audio["id"])


async def test_an_answer_says_until_when_its_id_is_known():
    began = int(time.time())
    async with serving(speaking(), speaks=True, limits={"transcript_seconds": 90}) as served:
        for stream in (False, True):
            assert began + 90 <= (await speech(served, stream))["expires_at"] <= time.time() + 90


async def test_no_client_can_use_the_id_of_another():
    async with serving(speaking(), speaks=True, api_keys=["one", "two"]) as served:
        one, two = served.openai("one"), served.openai("two")
        async with one, two:
            ask = {"model": "any", "modalities": ["audio"], "audio": {"voice": "ethan", "format": "wav"}}
            answer = await one.chat.completions.create(messages=HELLO["messages"], **ask)
            audio_id = answer.choices[0].message.audio.id
            messages: Any = naming(audio_id)["messages"]
            with pytest.raises(openai.NotFoundError) as stolen:
                await two.chat.completions.create(messages=messages, model="any")
            unknown: Any = naming("audio_" + "0" * 32)["messages"]
            with pytest.raises(openai.NotFoundError) as guessed:
                await two.chat.completions.create(messages=unknown, model="any")
            await one.chat.completions.create(messages=messages, model="any")
    assert stolen.value.code == guessed.value.code == "audio_not_found"
    assert stolen.value.message.replace(audio_id, "") == guessed.value.message.replace("audio_" + "0" * 32, "")


@pytest.mark.parametrize("end", ["failed", "left"])
async def test_an_answer_that_was_not_completed_has_no_id(end):
    pipeline = ScriptedPipeline()
    async with serving(pipeline, speaks=True) as served, served.openai() as client:
        ask = {"model": "any", "modalities": ["audio"], "audio": {"voice": "ethan", "format": "pcm16"}}
        asked = asyncio.create_task(client.chat.completions.create(messages=HELLO["messages"], stream=True, **ask))
        request_id = await pipeline.submitted.get()
        pipeline.say(request_id, "Hel")
        stream = await asked
        audio_id = [(await anext(stream)).choices[0].delta for _ in range(2)][1].audio["id"]
        if end == "failed":
            pipeline.fail(request_id, internal("The voice is gone.", code="worker_lost").info, "code2wav")
        else:
            await stream.close()
        assert await pipeline.aborted.get() == request_id
        await refusal(served, audio_id)


@pytest.mark.parametrize("limits", [{"transcripts": 4}, {"transcript_bytes": 4 * (512 + 5)}], ids=str)
async def test_beyond_a_limit_an_answer_says_that_its_id_is_not_kept(limits):
    async with serving(speaking(), speaks=True, limits=limits) as served:
        kept = [await speech(served), await speech(served)]
        beyond = await speech(served, stream=True)
        assert beyond["expires_at"] <= time.time() < kept[0]["expires_at"]
        await refusal(served, beyond["id"])
        for audio in kept:
            assert (await turns_of(served, naming(audio["id"])))[1].content == [Text("Hello")]


async def test_transcripts_count_as_text_of_the_request():
    async with serving(speaking("x" * 10_000), speaks=True, limits={"text_bytes": 25_000}) as served:
        message = naming((await speech(served))["id"])["messages"][1]
        for count, expected in ((2, 200), (3, 413)):
            status, body = await served.post({"messages": [*HELLO["messages"], *[message] * count]})
            assert status == expected, body
    assert (body["error"]["code"], body["error"]["param"]) == ("text_too_large", "messages[3].audio.id")


async def test_transcripts_count_as_bytes_that_the_request_holds():
    async with serving(speaking("x" * 10_000), speaks=True, limits={"held_bytes": 50_000}) as served:
        message = naming((await speech(served))["id"])["messages"][1]
        for count, expected in ((2, 200), (3, 429)):
            status, body = await served.post({"messages": [*HELLO["messages"], *[message] * count]})
            assert status == expected, body


# --- the module itself, with a simulated clock ---


class Clock:
    def __init__(self) -> None:
        self.time = 1000.5

    def __call__(self) -> float:
        return self.time


def history(clock: Clock, *, private: bool = True, **limits: Any) -> SpokenHistory:
    return SpokenHistory(Limits(**limits), private=private, now=clock)


def test_a_transcript_is_known_exactly_until_it_expires():
    clock = Clock()
    kept = history(clock, transcript_seconds=60)
    until = kept.keep("a", "audio_1", "Größe 😀")
    assert until == 1060
    for now, text in ((1000.5, "Größe 😀"), (1060, "Größe 😀"), (1060.001, None)):
        clock.time = now
        assert kept.transcript("a", "audio_1") == text


def test_nothing_is_forgotten_early_and_room_is_free_after_expiry():
    clock = Clock()
    kept = history(clock, transcripts=8, transcript_seconds=60)
    expires = {}
    count = 0
    for number in range(200):
        clock.time += 7
        expires[number] = kept.keep(f"client {number % 3}", f"audio_{number}", str(number))
        count += expires[number] > clock.time
        for earlier, until in expires.items():
            known = kept.transcript(f"client {earlier % 3}", f"audio_{earlier}") is not None
            assert known == (clock.time <= until), (number, earlier)
    assert 100 < count < 200, "most are kept, but there is not always room"
    clock.time += 1000
    kept.keep("another", "audio_last", "")
    assert len(kept._kept) == 1
    assert (kept._counts.held, kept._counts.held_by("another")) == (1, 1)
    assert (kept._bytes.held, kept._bytes.held_by("another")) == (512, 512)


@pytest.mark.parametrize("limits", [{"transcripts": 64}, {"transcript_bytes": 64 * (512 + 100)}], ids=str)
def test_a_client_that_keeps_as_much_as_it_may_leaves_room_for_others(limits):
    clock = Clock()
    kept = history(clock, **limits)
    shares = [
        sum(kept.keep(client, f"audio_{client}_{number}", "x" * 100) > clock.time for number in range(100))
        for client in ("first", "second", "third")
    ]
    assert shares == [32, 16, 8]


def test_a_server_may_keep_nothing():
    clock = Clock()
    kept = history(clock, transcripts=0)
    assert kept.keep("a", "audio_1", "Hello") == 1000
    assert kept.transcript("a", "audio_1") is None


@pytest.mark.parametrize("private", [True, False])
def test_an_id_belongs_to_its_client_only_where_clients_are_known(private):
    kept = history(Clock(), private=private)
    kept.keep("10.0.0.1", "audio_1", "Hello")
    assert kept.transcript("10.0.0.1", "audio_1") == "Hello"
    assert kept.transcript("10.0.0.2", "audio_1") == (None if private else "Hello")
