"""Asks the test's questions through the Responses API of OpenAI's library."""

from __future__ import annotations

from typing import Any

from cases import FOLLOW_UP, KEY, PICTURE, QUESTION, SOUND, URL, print_answers
from openai import OpenAI

client = OpenAI(base_url=URL, api_key=KEY)
picture = {"type": "input_image", "image_url": PICTURE, "detail": "auto"}
typed = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}, picture]}]
spoken = [
    {"role": "user", "content": [picture, {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}]}
]


def ask(items: list[Any]) -> Any:
    return client.responses.create(model="qwen3-omni", input=items)


def stream() -> str:
    events = client.responses.create(model="qwen3-omni", input=typed, stream=True)
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def stream_helper() -> str:
    with client.responses.stream(model="qwen3-omni", input=typed) as events:
        return str(events.get_final_response().output_text)


def follow_up() -> str:
    return str(ask([*typed, *ask(typed).output, {"role": "user", "content": FOLLOW_UP}]).output_text)


print_answers(
    {
        "picture": lambda: ask(typed).output_text,
        "sound": lambda: ask(spoken).output_text,
        "stream": stream,
        "stream helper": stream_helper,
        "follow-up": follow_up,
    }
)
