"""Runs tool loops with OpenAI's own library."""

from __future__ import annotations

import json
from typing import Any

from cases import KEY, PICTURE, QUESTION, SOUND, SPEECH, STOCK, URL, print_answers
from openai import OpenAI

completions = OpenAI(base_url=URL, api_key=KEY).chat.completions
picture = {"type": "image_url", "image_url": {"url": PICTURE}}
text = [{"role": "user", "content": QUESTION}]
typed = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, picture]}]
spoken = [
    {"role": "user", "content": [picture, {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}]}
]


def tool_loop(messages: list[Any], *, streamed: bool = False, **last: Any) -> dict[str, Any]:
    """Call a tool, send its result back, and return the call and the last answer."""
    tools: list[Any] = [{"type": "function", "function": STOCK | ({"strict": True} if streamed else {})}]
    options: dict[str, Any] = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    if streamed:
        with completions.stream(model="qwen3-omni", messages=messages, **options) as stream:
            first = stream.get_final_completion().choices[0].message
    else:
        first = completions.create(model="qwen3-omni", messages=messages, **options).choices[0].message
    [call] = first.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    answer = completions.create(model="qwen3-omni", messages=[*messages, first, result], tools=tools, **last)
    message = answer.choices[0].message
    called = {"name": call.function.name, "arguments": json.loads(call.function.arguments)}
    return {"called": called, "text": message.content, "sound": message.audio and message.audio.data}


print_answers(
    {
        "tools, text": lambda: tool_loop(text),
        "tools, picture": lambda: tool_loop(typed),
        "tools, sound": lambda: tool_loop(spoken),
        "tools, streamed": lambda: tool_loop(typed, streamed=True),
        "tools, speech": lambda: tool_loop(spoken, **SPEECH),
    }
)
