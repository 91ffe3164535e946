"""Asks the test's questions through the OpenAI Agents SDK with its default model, which uses the Responses API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from agents import Agent, Runner, set_default_openai_client, set_tracing_disabled
from cases import FOLLOW_UP, KEY, PICTURE, QUESTION, SOUND, URL, print_answers
from openai import AsyncOpenAI

set_tracing_disabled(True)
picture = {"type": "input_image", "image_url": PICTURE, "detail": "auto"}
typed = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}, picture]}]
sound_part = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}
spoken = [{"role": "user", "content": [picture, sound_part]}]


guide = Agent(name="guide", model="qwen3-omni")


async def ask(items: list[Any]) -> str:
    return str((await Runner.run(guide, items)).final_output)


async def stream() -> str:
    text = ""
    async for event in Runner.run_streamed(guide, typed).stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    return text


async def follow_up() -> str:
    """The answer to a second question, after the first answer has been sent back as the library returned it."""
    first = await Runner.run(guide, typed)
    return await ask([*first.to_input_list(), {"role": "user", "content": FOLLOW_UP}])


def running(work: Callable[[], Coroutine[Any, Any, Any]]) -> Callable[[], Any]:
    async def work_with_client() -> Any:
        # Each question has a separate event loop, so it needs a separate client.
        async with AsyncOpenAI(base_url=URL, api_key=KEY) as client:
            set_default_openai_client(client, use_for_tracing=False)
            return await work()

    return lambda: asyncio.run(work_with_client())


print_answers(
    {
        "picture": running(lambda: ask(typed)),
        "sound": running(lambda: ask(spoken)),
        "stream": running(stream),
        "follow-up": running(follow_up),
    }
)
