"""Asks the test's questions through LiteLLM's OpenAI-compatible provider."""

from __future__ import annotations

from typing import Any

from cases import FOLLOW_UP, KEY, PICTURE, QUESTION, SOUND, SPEECH, URL, print_answers
from litellm import completion

picture = {"type": "image_url", "image_url": {"url": PICTURE}}
typed = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, picture]}]
sound_part = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}
spoken = [{"role": "user", "content": [picture, sound_part]}]


def ask(messages: list[Any], **options: Any) -> Any:
    return completion(model="openai/qwen3-omni", api_base=URL, api_key=KEY, messages=messages, **options)


def speech() -> dict[str, Any]:
    message = ask(typed, **SPEECH).choices[0].message
    return {"text": message.content, "sound": message.audio.data}


def follow_up(**options: Any) -> str:
    """The answer to a second question, after the first answer has been sent back as the library returned it."""
    first = ask(typed, **options).choices[0].message
    return str(ask([*typed, first, {"role": "user", "content": FOLLOW_UP}], **options).choices[0].message.content)


print_answers(
    {
        "picture": lambda: ask(typed).choices[0].message.content,
        "sound": lambda: ask(spoken).choices[0].message.content,
        "stream": lambda: "".join(chunk.choices[0].delta.content or "" for chunk in ask(typed, stream=True)),
        "speech": speech,
        "follow-up": follow_up,
        "follow-up to speech": lambda: follow_up(**SPEECH),
    }
)
