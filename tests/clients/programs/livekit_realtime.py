"""Talks with the model through LiveKit's plugin for OpenAI's realtime models, with its default settings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from cases import FOLLOW_UP, KEY, PICTURE, QUESTION, STOCK, URL
from livekit import rtc
from livekit.agents import llm
from livekit.plugins.openai.realtime import RealtimeModel
from realtime_cases import LISTENED, LONG_QUESTION, QUESTION_PCM, RATE, Microphone, print_results, spoken

NAMED = {"type": "function", "function": {"name": STOCK["name"]}}


class Talk:
    """A session of the plugin, and the answers that it has announced."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.generations: asyncio.Queue[Any] = asyncio.Queue()
        self.started = asyncio.Event()
        self.truncated = asyncio.Event()
        self.errors: list[Any] = []
        session.on("generation_created", self.generations.put_nowait)
        session.on("input_speech_started", lambda _: self.started.set())
        session.on("error", self.errors.append)
        session.on("openai_server_event_received", self._note)

    def _note(self, event: dict[str, Any]) -> None:
        if event["type"] == "conversation.item.truncated":
            self.truncated.set()

    async def send_packet(self, pcm: bytes) -> None:
        self.session.push_audio(rtc.AudioFrame(pcm, RATE, 1, len(pcm) // 2))

    async def add(self, *items: Any) -> None:
        context = self.session.chat_ctx.copy()
        context.items.extend(items)
        await self.session.update_chat_ctx(context)

    async def answer(self) -> dict[str, Any]:
        """Read the next answer until it ends."""
        if self.errors:
            raise RuntimeError(str(self.errors[0].error))
        return await collected(await self.generations.get())


async def collected(generation: Any) -> dict[str, Any]:
    """The text and the sound of an answer, and the calls in it."""
    words: list[str] = []
    sounds: list[bytes] = []
    async for message in generation.message_stream:  # the streams keep messages until they are read
        words += [str(text) async for text in message.text_stream]
        sounds += [bytes(frame.data.cast("B")) async for frame in message.audio_stream]
    calls = [call async for call in generation.function_stream]
    return spoken("".join(words), b"".join(sounds)) | {"calls": calls}


def message(role: str, *content: Any) -> llm.ChatMessage:
    return llm.ChatMessage(role=role, content=list(content))


@asynccontextmanager
async def talk() -> AsyncIterator[Talk]:
    async with aiohttp.ClientSession() as http:
        model = RealtimeModel(base_url=URL, api_key=KEY, http_session=http)
        session = model.session()
        try:
            yield Talk(session)
        finally:
            await session.aclose()
            await model.aclose()


def picture() -> llm.ChatMessage:
    return message("user", llm.ImageContent(image=PICTURE))


async def picture_turn() -> dict[str, Any]:
    async with talk() as one, Microphone(one.send_packet) as microphone:
        await one.add(picture())
        microphone.say(QUESTION_PCM)
        answer = await one.answer()
        return {name: answer[name] for name in ("text", "sound")}


async def barge_in() -> dict[str, Any]:
    """The caller of the plugin stops the answer and truncates it, as LiveKit's agents do."""
    async with talk() as one, Microphone(one.send_packet) as microphone:
        await one.add(picture(), message("user", LONG_QUESTION))
        generation = await one.session.generate_reply()
        first = await anext(aiter(generation.message_stream))
        await anext(aiter(first.audio_stream))
        await asyncio.sleep(LISTENED)
        microphone.say(QUESTION_PCM)
        await one.started.wait()
        one.session.interrupt()
        one.session.truncate(message_id=first.message_id, modalities=["audio"], audio_end_ms=int(1000 * LISTENED))
        await one.truncated.wait()
        one.generations.get_nowait()  # the interrupted answer
        answer = await one.answer()
        return {name: answer[name] for name in ("text", "sound")}


async def tool_call() -> dict[str, Any]:
    async def look(raw_arguments: dict[str, object]) -> str:
        return "3"

    async with talk() as one, Microphone(one.send_packet) as microphone:
        tool = llm.function_tool(look, raw_schema=STOCK)
        await one.session.update_tools([tool])
        one.session.update_options(tool_choice=NAMED)
        microphone.say(QUESTION_PCM)
        [call] = (await one.answer())["calls"]
        one.session.update_options(tool_choice="auto")
        await one.add(
            llm.FunctionCallOutput(call_id=call.call_id, name=call.name, output="3", is_error=False),
        )
        await one.session.generate_reply()
        answer = await one.answer()
        return {name: answer[name] for name in ("text", "sound")} | {
            "called": {"name": call.name, "arguments": json.loads(call.arguments)}
        }


async def history() -> dict[str, Any]:
    """The plugin copies the context of an earlier session into a new session."""
    async with talk() as one, Microphone(one.send_packet) as microphone:
        await one.add(picture())
        microphone.say(QUESTION_PCM)
        first = await one.answer()
    async with talk() as one:
        answered = message("assistant", first["text"])
        await one.add(picture(), message("user", QUESTION), answered, message("user", FOLLOW_UP))
        generation = await one.session.generate_reply()
        answer = await collected(generation)
        return {name: answer[name] for name in ("text", "sound")}


print_results({"picture": picture_turn, "barge-in": barge_in, "tool": tool_call, "history": history})
