"""Asks the questions of the usage guide, and checks that the answers are sane."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy
import soundfile

CARS = "How many cars are there in the picture?"

# The request of each example. The guide prints each request twice, for curl and for Python.
EXAMPLES: dict[str, dict[str, Any]] = {
    "image and text": {
        "messages": [{"role": "user", "content": CARS}],
        "images": ["tests/data/cars.jpg"],
    },
    "audio and image": {
        "messages": [{"role": "user", "content": ""}],
        "images": ["tests/data/cars.jpg"],
        "audios": ["tests/data/query_to_cars.wav"],
    },
    "video and audio": {
        "messages": [{"role": "user", "content": ""}],
        "videos": ["tests/data/draw.mp4"],
        "audios": ["tests/data/query_to_draw.wav"],
    },
}

# Sound softer than this counts as silence.
_AUDIBLE = 1e-3


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer of the server, and the fault in the answer.

    Attributes:
        text: The text of the answer.
        seconds: Duration of the sound in seconds; None if no sound was requested or the answer cannot be used.
        problem: The fault in the answer; empty if there is none.
    """

    text: str
    seconds: float | None
    problem: str


def body(name: str, *, speech: bool, max_tokens: int = 64) -> dict[str, Any]:
    """The request of one of the guide's examples."""
    modalities = ["text", "audio"] if speech else ["text"]
    return EXAMPLES[name] | {"model": "qwen3-omni", "modalities": modalities, "max_tokens": max_tokens}


def judge(status: int, result: dict[str, Any], *, speech: bool) -> JudgedAnswer:
    """Read the answer from a response, and judge it."""
    if status != 200:
        return JudgedAnswer("", None, f"status {status}: {result.get('error', result)}")
    [choice] = result["choices"]
    text = choice["message"]["content"] or ""
    if not text.strip():
        return JudgedAnswer(text, None, "it has no text")
    if choice["finish_reason"] not in ("stop", "length"):
        return JudgedAnswer(text, None, f"it ended with {choice['finish_reason']}")
    if not speech:
        return JudgedAnswer(text, None, "")
    audio = choice["message"].get("audio")
    if not audio:
        return JudgedAnswer(text, None, "it has no sound")
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(audio["data"])), dtype="float32")
    seconds = len(samples) / rate
    if rate != 24000:
        return JudgedAnswer(text, seconds, f"its sampling rate is {rate} Hz")
    loudness = float(numpy.sqrt(numpy.mean(numpy.square(samples)))) if len(samples) else 0.0
    return JudgedAnswer(text, seconds, "" if loudness > _AUDIBLE else "its sound is silence")
