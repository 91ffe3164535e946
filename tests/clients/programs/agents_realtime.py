"""Talks with the model through the OpenAI Agents SDK, with its default settings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agents import FunctionTool
from agents.realtime import RealtimeAgent, RealtimeRunner
from agents.realtime.model_inputs import RealtimeModelSendRawMessage, RealtimeModelSendSessionUpdate
from cases import FOLLOW_UP, KEY, PICTURE, STOCK
from realtime_cases import (
    LISTENED,
    LONG_QUESTION,
    QUESTION_PCM,
    SOCKET_URL,
    THIS_TOOL,
    Microphone,
    print_results,
    spoken,
)

CONNECTION = {"url": f"{SOCKET_URL}/realtime?model=qwen3-omni", "api_key": KEY}
PICTURE_ITEM = {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}


class Talk:
    """A session of the SDK, with the contents of the events so far.

    Attributes:
        sound: The sound since the last answer.
        truncated: How much of each truncated item the listener heard, in ms.
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        self.events = aiter(session)
        self.sound = b""
        self.words = ""
        self.truncated: list[int] = []
        self.history: list[Any] = []

    async def until(self, *kinds: str) -> Any:
        """The next event of these types."""
        while True:
            event = await anext(self.events)
            if event.type == "error":
                raise RuntimeError(str(event.error))
            if event.type == "audio":
                self.sound += event.audio.data
            if event.type == "history_updated":
                self.history = event.history
            if event.type == "raw_model_event" and event.data.type == "exception":
                raise event.data.exception
            if event.type == "raw_model_event" and event.data.type == "raw_server_event":
                self._note(event.data.data)
                if event.data.data["type"] in kinds:
                    return event.data.data
            if event.type in kinds:
                return event

    def _note(self, event: dict[str, Any]) -> None:
        if event["type"] == "response.output_audio_transcript.delta":
            self.words += event["delta"]
        if event["type"] == "conversation.item.truncated":
            self.truncated.append(event["audio_end_ms"])

    async def answer(self) -> dict[str, Any]:
        """Read the next response until it ends."""
        self.words, self.sound = "", b""
        done = await self.until("response.done")
        return spoken(self.words, self.sound) | {"status": done["response"]["status"]}

    async def create(self, item: dict[str, Any]) -> None:
        message = {"type": "conversation.item.create", "other_data": {"item": item}}
        await self.session.model.send_event(RealtimeModelSendRawMessage(message=message))


@asynccontextmanager
async def talk(tools: list[FunctionTool] | None = None, **settings: Any) -> AsyncIterator[Talk]:
    agent = RealtimeAgent(name="guide", instructions="", tools=tools or [])
    options = CONNECTION | ({"initial_model_settings": settings} if settings else {})
    async with await RealtimeRunner(agent).run(model_config=options) as session:
        yield Talk(session)


async def picture_turn() -> dict[str, Any]:
    async with talk() as one, Microphone(one.session.send_audio) as microphone:
        await one.create(PICTURE_ITEM)
        microphone.say(QUESTION_PCM)
        return await one.answer()


async def barge_in() -> dict[str, Any]:
    """When the user begins to speak, the SDK itself truncates the answer to the part that has been played."""
    async with talk() as one, Microphone(one.session.send_audio) as microphone:
        await one.create(PICTURE_ITEM)
        await one.session.send_message(LONG_QUESTION)
        await one.until("audio")
        await asyncio.sleep(LISTENED)
        microphone.say(QUESTION_PCM)
        await one.until("audio_interrupted")
        await one.until("conversation.item.truncated")
        before = one.words
        retrieved = await one.until("conversation.item.retrieved")  # the SDK requests the item after a truncation
        heard = retrieved["item"]["content"][0]["transcript"]
        while (answer := await one.answer())["status"] != "completed" or not answer["text"]:
            pass
        return answer | {"before": before, "heard": heard, "truncated": one.truncated}


async def tool_call() -> dict[str, Any]:
    called: list[Any] = []

    async def look(context: Any, arguments: str) -> str:
        called.append({"name": STOCK["name"], "arguments": json.loads(arguments)})
        # If `tool_choice` remained unchanged, the model would call the tool again instead of speaking about the result.
        await one.session.model.send_event(RealtimeModelSendSessionUpdate({"tools": [tool], "tool_choice": "auto"}))
        return "3"

    tool = FunctionTool(STOCK["name"], STOCK["description"], STOCK["parameters"], look)
    async with talk([tool], tool_choice=THIS_TOOL) as one, Microphone(one.session.send_audio) as microphone:
        microphone.say(QUESTION_PCM)
        await one.until("tool_end")
        while not (answer := await one.answer())["text"]:
            pass
        [call] = called
        return answer | {"called": call}


async def history() -> dict[str, Any]:
    """The answer to a question in a new session. The question refers to an earlier session, whose items come from the
    SDK's history.
    """
    async with talk() as one, Microphone(one.session.send_audio) as microphone:
        await one.create(PICTURE_ITEM)
        microphone.say(QUESTION_PCM)
        await one.answer()
        kept = one.history
    async with talk() as one:
        for item in kept:
            await one.create(replayed(item))
        await one.session.send_message(FOLLOW_UP)
        return await one.answer()


def replayed(item: Any) -> dict[str, Any]:
    """Converts an item of the SDK's history to an item that can be added to a session."""
    made: dict[str, Any] = {"type": "message", "role": item.role, "content": []}
    for part in item.content:
        if part.type == "input_image":
            made["content"].append({"type": "input_image", "image_url": part.image_url or PICTURE})
        elif part.type == "audio":
            made["content"].append({"type": "output_text", "text": part.transcript})
        else:
            text = getattr(part, "text", None) or getattr(part, "transcript", None) or ""
            made["content"].append({"type": "input_text", "text": text})
    return made


print_results({"picture": picture_turn, "barge-in": barge_in, "tool": tool_call, "history": history})
