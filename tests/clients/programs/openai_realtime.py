"""Talks with the model through OpenAI's Python library. The only settings are the tools."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cases import FOLLOW_UP, KEY, PICTURE, QUESTION, STOCK, URL
from openai import AsyncOpenAI
from realtime_cases import LONG_QUESTION, QUESTION_PCM, THIS_TOOL, Microphone, print_results, spoken

PICTURE_ITEM = {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}


class Talk:
    """A connection, with the contents of the events so far."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.events: list[Any] = []

    async def until(self, kind: str) -> Any:
        """The next event of this type."""
        while True:
            event = await self.connection.recv()
            self.events.append(event)
            if event.type == "error":
                raise RuntimeError(event.error.message)
            if event.type == kind:
                return event

    async def send_packet(self, pcm: bytes) -> None:
        await self.connection.input_audio_buffer.append(audio=base64.b64encode(pcm).decode())

    def said(self, response_id: str) -> dict[str, Any]:
        """The transcript and the sound of one response."""
        mine = [event for event in self.events if getattr(event, "response_id", None) == response_id]
        words = [event.delta for event in mine if event.type == "response.output_audio_transcript.delta"]
        sounds = [base64.b64decode(event.delta) for event in mine if event.type == "response.output_audio.delta"]
        return spoken("".join(words), b"".join(sounds))

    async def answer(self) -> dict[str, Any]:
        """Read the next response until it ends."""
        done = await self.until("response.done")
        return self.said(done.response.id) | {"status": done.response.status}


@asynccontextmanager
async def talk() -> AsyncIterator[Talk]:
    async with AsyncOpenAI(base_url=URL, api_key=KEY).realtime.connect(model="qwen3-omni") as connection:
        talk = Talk(connection)
        await talk.until("session.created")
        yield talk


async def picture_turn() -> dict[str, Any]:
    """The answer to a spoken question about a picture."""
    async with talk() as one, Microphone(one.send_packet) as microphone:
        await one.connection.conversation.item.create(item=PICTURE_ITEM)
        microphone.say(QUESTION_PCM)
        return await one.answer()


async def barge_in() -> dict[str, Any]:
    """The part that remains of an interrupted answer, and the answer to the interruption."""
    async with talk() as one, Microphone(one.send_packet) as microphone:
        await one.connection.conversation.item.create(item=PICTURE_ITEM)
        question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": LONG_QUESTION}]}
        await one.connection.conversation.item.create(item=question)
        await one.connection.response.create()
        first = await one.until("response.output_audio.delta")
        microphone.say(QUESTION_PCM)
        await one.until("input_audio_buffer.speech_started")
        await one.connection.conversation.item.truncate(item_id=first.item_id, content_index=0, audio_end_ms=400)
        await one.until("conversation.item.truncated")
        done = [event for event in one.events if event.type == "response.done"]
        interrupted = done[0] if done else await one.until("response.done")
        answer = await one.answer()
        await one.connection.conversation.item.retrieve(item_id=first.item_id)
        remains = await one.until("conversation.item.retrieved")
        return answer | {
            "before": one.said(interrupted.response.id)["text"],
            "heard": remains.item.content[0].transcript,
        }


async def tool_call() -> dict[str, Any]:
    """A tool call that the model makes after a spoken question, and the model's answer after the result."""
    async with talk() as one, Microphone(one.send_packet) as microphone:
        tool = {"type": "function"} | STOCK
        await one.connection.session.update(session={"type": "realtime", "tools": [tool], "tool_choice": THIS_TOOL})
        await one.until("session.updated")
        microphone.say(QUESTION_PCM)
        call = await one.until("response.function_call_arguments.done")
        await one.until("response.done")
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
        await one.connection.conversation.item.create(item=result)
        await one.connection.response.create(response={"tool_choice": "auto"})
        answer = await one.answer()
        return answer | {"called": {"name": call.name, "arguments": json.loads(call.arguments)}}


async def history() -> dict[str, Any]:
    """The answer to a question in a new session. The question refers to an earlier session, whose items are added
    again.
    """
    async with talk() as one, Microphone(one.send_packet) as microphone:
        await one.connection.conversation.item.create(item=PICTURE_ITEM)
        microphone.say(QUESTION_PCM)
        first = await one.answer()
    async with talk() as one:
        answered = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": first["text"]}]}
        asked = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}
        follow_up = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": FOLLOW_UP}]}
        for item in (PICTURE_ITEM, asked, answered, follow_up):
            await one.connection.conversation.item.create(item=item)
        await one.connection.response.create()
        return await one.answer()


if __name__ == "__main__":
    print_results({"picture": picture_turn, "barge-in": barge_in, "tool": tool_call, "history": history})
