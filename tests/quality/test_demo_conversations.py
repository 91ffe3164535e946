"""Talks with the demo model in realtime sessions, as a user does with OpenAI's client."""

from __future__ import annotations

import asyncio
import base64
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.realtime.sounds.input_buffer import pcm_of, sound_of
from tests.gateway.realtime.talking import encoded, kinds, sound_in, sound_of_file, talking, text_in
from tests.server import Server

SECOND = 24_000


PUSH: dict[str, Any] = {"turn_detection": None}


def demo_client(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def picture(path: Path) -> dict:
    address = f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": address}]}


async def test_a_question_is_spoken_and_answered_in_speech(demo_server: Server, data: Path) -> None:
    async with talking(demo_server.url) as talk:
        await talk.push()
        await talk.send("conversation.item.create", item=picture(data / "cars.jpg"))
        await talk.until("conversation.item.done")
        await talk.append(sound_of_file(data / "query_to_cars.wav"))
        await talk.send("input_audio_buffer.commit")
        await talk.until("conversation.item.done")
        events = await talk.respond()
    assert text_in(events) == "There are three cars."
    assert 0.5 < len(sound_in(events)) / SECOND < 5


async def test_a_text_answers_a_text(demo_server: Server, data: Path) -> None:
    async with talking(demo_server.url) as talk:
        await talk.send("conversation.item.create", item=picture(data / "cars.jpg"))
        await talk.until("conversation.item.done")
        await talk.say("How many cars are there?")
        events = await talk.respond(output_modalities=["text"])
        content = events[-1]["response"]["output"][0]["content"]
    assert content == [{"type": "output_text", "text": "There are three cars."}]


async def test_the_server_finds_the_turn_and_answers_by_itself(demo_server: Server, data: Path) -> None:
    async with talking(demo_server.url) as talk:
        await talk.send("conversation.item.create", item=picture(data / "cars.jpg"))
        await talk.until("conversation.item.done")
        begin = len(talk.seen)
        await talk.append(bytes(SECOND) + sound_of_file(data / "query_to_cars.wav") + bytes(2 * SECOND))
        await talk.until("response.done")
        events = talk.seen[begin:]
    assert kinds(events)[:6] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
    ]
    started, stopped, committed = events[:3]
    assert started["item_id"] == stopped["item_id"] == committed["item_id"]
    assert started["audio_start_ms"] < stopped["audio_end_ms"]
    assert text_in(events) == "There are three cars."


async def test_speech_interrupts_the_answer(demo_server: Server, data: Path) -> None:
    question = sound_of_file(data / "query_to_cars.wav")
    async with talking(demo_server.url) as talk:
        await talk.send("conversation.item.create", item=picture(data / "cars.jpg"))
        await talk.until("conversation.item.done")
        await talk.append(bytes(SECOND) + question + bytes(2 * SECOND))
        await talk.until("response.output_audio.delta")
        begin = len(talk.seen)
        await talk.append(question)
        await talk.until("response.done")
        cut = talk.seen[begin:]
        await talk.append(bytes(2 * SECOND))
        await talk.until("response.done")
        again = talk.seen[begin + len(cut) :]
    order = kinds(cut)
    response = cut[-1]["response"]
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert "response.output_audio.delta" not in order[order.index("input_audio_buffer.speech_started") :]
    assert "There are three cars.".startswith(response["output"][0]["content"][0]["transcript"])
    assert text_in(again) == "There are three cars."


async def test_the_model_may_begin(demo_server: Server) -> None:
    async with talking(demo_server.url) as talk:
        first = await talk.respond()
        second = await talk.respond(instructions="Greet the user.")
    assert [events[-1]["response"]["status"] for events in (first, second)] == ["completed", "completed"]


GREEDY = {"talker_ar": {"temperature": 0, "max_tokens": 80}, "code_predictor": {"temperature": 0}}


async def test_a_conversation_equals_the_same_one_sent_whole(demo_server: Server, data: Path) -> None:
    question = sound_of_file(data / "query_to_cars.wav")
    image = picture(data / "cars.jpg")["content"][0]["image_url"]
    messages: list[dict[str, Any]] = []
    async with talking(demo_server.url) as talk, demo_client(demo_server) as client:
        await talk.send("session.update", session={"stage_sampling": GREEDY, "audio": {"input": PUSH}})
        await talk.until("session.updated")
        await talk.send("conversation.item.create", item=picture(data / "cars.jpg"))
        await talk.until("conversation.item.done")
        messages.append({"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]})
        for sound in (question, question[: 2 * 9_000], "And the third?", question):
            if isinstance(sound, str):
                await talk.say(sound)
                content: dict[str, Any] = {"type": "text", "text": sound}
            else:
                await talk.append(sound)
                await talk.send("input_audio_buffer.commit")
                await talk.until("conversation.item.done")
                wav = bytes(sound_of(pcm_of(sound, "audio/pcm"), "audio").medium.data.buffer())
                content = {"type": "input_audio", "input_audio": {"data": encoded(wav), "format": "wav"}}
            messages.append({"role": "user", "content": [content]})
            events = await talk.respond()
            whole = await client.chat.completions.create(
                model="any",
                messages=messages,
                modalities=["text", "audio"],
                audio={"voice": "default", "format": "pcm16"},
                extra_body={"stage_sampling": GREEDY},
            )
            message = whole.choices[0].message
            assert text_in(events) == message.content
            assert sound_in(events).tobytes() == base64.b64decode(message.audio.data)
            messages.append({"role": "assistant", "content": message.content})


PAGE = 1
"""Tokens of one page of the thinker's KV cache on a CPU."""


async def test_a_turn_costs_only_its_own_prompt(demo_server: Server, data: Path) -> None:
    question = sound_of_file(data / "query_to_cars.wav")
    usages = []
    async with talking(demo_server.url) as talk:
        await talk.push()
        await talk.send("conversation.item.create", item=picture(data / "cars.jpg"))
        await talk.until("conversation.item.done")
        for sound in (question, question[: 2 * 7_200], 5 * question, question):
            await talk.append(sound)
            await talk.send("input_audio_buffer.commit")
            await talk.until("conversation.item.done")
            usages.append((await talk.respond())[-1]["response"]["usage"])
    for before, usage in pairwise(usages):
        known = before["input_tokens"] + before["output_token_details"]["text_tokens"]
        assert usage["input_token_details"]["cached_tokens"] >= known - PAGE
        assert usage["input_tokens"] > known


async def test_many_interruptions_leave_nothing_behind(demo_server: Server, data: Path) -> None:
    """Answers are interrupted at random times. The last answer is right, and afterwards no stage holds a request."""
    rng = random.Random(7)
    question = sound_of_file(data / "query_to_cars.wav")
    async with talking(demo_server.url) as talk:
        await talk.send("conversation.item.create", item=picture(data / "cars.jpg"))
        await talk.until("conversation.item.done")
        await talk.append(bytes(SECOND) + question + bytes(2 * SECOND))
        await talk.until("response.created")
        for _ in range(12):
            await asyncio.sleep(rng.uniform(0, 0.4))
            await talk.append(question)
            await talk.until("input_audio_buffer.speech_started")
            await talk.append(bytes(2 * SECOND))
            await talk.until("response.created")
        begin = len(talk.seen)
        await talk.until("response.done")
        assert text_in(talk.seen[begin:]) == "There are three cars."
        ended = [event["response"]["status"] for event in talk.seen if event["type"] == "response.done"]
    assert len(ended) == 13
    for _ in range(60):
        held = await asyncio.to_thread(demo_server.live_requests)
        if not any(held.values()):
            return
        await asyncio.sleep(0.5)
    pytest.fail(f"the stages hold {held}")
