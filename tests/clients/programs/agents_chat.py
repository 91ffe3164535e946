"""Asks the test's questions through the OpenAI Agents SDK with its model for chat completions.

The SDK itself refuses an answer with speech, so no question asks for speech.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from agents import Agent, FunctionTool, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from cases import FOLLOW_UP, KEY, PICTURE, QUESTION, SOUND, STOCK, URL, print_answers
from openai import AsyncOpenAI

set_tracing_disabled(True)
picture = {"type": "input_image", "image_url": PICTURE, "detail": "auto"}
typed = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}, picture]}]
sound_part = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}
spoken = [{"role": "user", "content": [picture, sound_part]}]


def agent(**options: Any) -> Agent:
    model = OpenAIChatCompletionsModel(model="qwen3-omni", openai_client=AsyncOpenAI(base_url=URL, api_key=KEY))
    return Agent(name="guide", model=model, **options)


async def ask(items: list[Any]) -> str:
    return str((await Runner.run(agent(), items)).final_output)


async def stream() -> str:
    text = ""
    async for event in Runner.run_streamed(agent(), typed).stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    return text


async def follow_up() -> str:
    """The answer to a second question, after the first answer has been sent back as the library returned it."""
    first = await Runner.run(agent(), typed)
    return await ask([*first.to_input_list(), {"role": "user", "content": FOLLOW_UP}])


async def tool_loop(items: list[Any], *, streamed: bool = False) -> dict[str, Any]:
    """The calls of a tool that the library has run, and the last answer."""
    called: list[Any] = []

    async def look(_: Any, arguments: str) -> str:
        called.append({"name": STOCK["name"], "arguments": json.loads(arguments)})
        return "3"

    tool = FunctionTool(
        name=STOCK["name"],
        description=STOCK["description"],
        params_json_schema=STOCK["parameters"],
        on_invoke_tool=look,
    )
    # After the first call, the library itself sets `tool_choice` to `auto`.
    guide = agent(tools=[tool], model_settings=ModelSettings(tool_choice="required", parallel_tool_calls=False))
    if streamed:
        run = Runner.run_streamed(guide, items)
        async for _ in run.stream_events():
            pass
    else:
        run = await Runner.run(guide, items)
    [call] = called
    return {"called": call, "text": str(run.final_output)}


def running(work: Callable[[], Coroutine[Any, Any, Any]]) -> Callable[[], Any]:
    return lambda: asyncio.run(work())


print_answers(
    {
        "picture": running(lambda: ask(typed)),
        "sound": running(lambda: ask(spoken)),
        "stream": running(stream),
        "follow-up": running(follow_up),
        "tools, text": running(lambda: tool_loop([{"role": "user", "content": QUESTION}])),
        "tools, picture": running(lambda: tool_loop(typed)),
        "tools, sound": running(lambda: tool_loop(spoken)),
        "tools, streamed": running(lambda: tool_loop(typed, streamed=True)),
    }
)
