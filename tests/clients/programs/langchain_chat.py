"""Asks the test's questions through LangChain's `ChatOpenAI`."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

from cases import FOLLOW_UP, KEY, PICTURE, QUESTION, SOUND, SPEECH, URL, base64_of, print_answers
from langchain_openai import ChatOpenAI

picture = {"type": "image_url", "image_url": {"url": PICTURE}}
typed = [("user", [{"type": "text", "text": QUESTION}, picture])]
spoken = [("user", [picture, {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}])]
standard_blocks = [
    (
        "user",
        [
            {"type": "image", "base64": base64_of("cars.jpg"), "mime_type": "image/jpeg"},
            {"type": "audio", "base64": SOUND, "mime_type": "audio/wav"},
        ],
    )
]


def chat(**options: Any) -> ChatOpenAI:
    return ChatOpenAI(model="qwen3-omni", base_url=URL, api_key=KEY, **options)


def speech() -> dict[str, Any]:
    answer = chat(model_kwargs=SPEECH).invoke(typed)
    return {"text": answer.content, "sound": answer.additional_kwargs["audio"]["data"]}


def follow_up(**options: Any) -> str:
    """The answer to a second question, after the first answer has been sent back as the library returned it."""
    model = chat(**options)
    return str(model.invoke([*typed, model.invoke(typed), ("user", FOLLOW_UP)]).content)


def follow_up_to_sound() -> str:
    """The answer to a question that follows an answer without text. The library sends back only the id of the answer
    without text.
    """
    first = chat(model_kwargs=SPEECH | {"modalities": ["audio"]}).invoke(typed)
    return str(chat().invoke([*typed, first, ("user", FOLLOW_UP)]).content)


print_answers(
    {
        "picture": lambda: chat().invoke(typed).content,
        "sound": lambda: chat().invoke(spoken).content,
        "standard blocks": lambda: chat().invoke(standard_blocks).content,
        "stream": lambda: reduce(add, chat().stream(typed)).content,
        "speech": speech,
        "follow-up": follow_up,
        "follow-up to speech": lambda: follow_up(model_kwargs=SPEECH),
        "follow-up to sound": follow_up_to_sound,
    }
)
