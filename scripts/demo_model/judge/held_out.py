"""Makes examples that do not occur in the training. Their pictures, clips and speech are files, as clients send
them.
"""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

import av
import numpy as np
from PIL import Image

from demo_model.world.filming import FilmedClip, film
from demo_model.world.grammar import Drawing, Exchange, Facts, Motion, ask, drawing, motion, scene
from demo_model.world.painting import paint_picture
from demo_model.world.spoken_questions import HELD_OUT, RATE, some_voice, utterance
from demo_model.world.synthetic_voices import Sound

_FRAME_RATE = 25


@dataclass(frozen=True)
class Example:
    """A conversation whose last message asks a question, and the correct answer to this question.

    Attributes:
        shown: The subject of the question: "picture", "clip" or "nothing".
        how: The form of the question: "typed" or "spoken".
        second: Whether the question is the second question of its conversation. If so, `messages` begins with the first
            question and its correct answer.
    """

    messages: list[dict[str, Any]]
    answer: str
    task: str
    shown: str
    how: str
    second: bool = False


def examples(seed: int) -> Iterator[Example]:
    """Yield examples without end. Some examples show a picture, some show a clip, and some show neither. A question is
    typed or spoken, with equal probability.
    """
    rng = Random(seed)
    while True:
        shown = rng.choices(("picture", "clip", "nothing"), (62, 28, 10))[0]
        facts, part = _show(shown, rng)
        messages: list[dict[str, Any]] = []
        for second in (False, True) if shown == "picture" and rng.random() < 0.25 else (False,):
            how = rng.choice(("typed", "spoken"))
            exchange = ask(facts, rng)
            question = _typed(exchange) if how == "typed" else _spoken(exchange, rng)
            content = [question] if part is None or second else [part, question]
            messages = [*messages, {"role": "user", "content": content}]
            yield Example(messages, exchange.answer, exchange.task, shown, how, second)
            messages = [*messages, {"role": "assistant", "content": exchange.answer}]


def _show(shown: str, rng: Random) -> tuple[Facts, dict[str, Any] | None]:
    if shown == "nothing":
        return None, None
    if shown == "picture":
        painting = paint_picture(scene(rng), rng, oversampling=2)
        return painting.picture, {"type": "image_url", "image_url": {"url": _url("image/jpeg", jpeg(painting.image))}}
    facts: Motion | Drawing = motion(rng) if rng.random() < 0.55 else drawing(rng)
    return facts, {"type": "video_url", "video_url": {"url": _url("video/mp4", mp4(film(facts, rng)))}}


def _typed(exchange: Exchange) -> dict[str, Any]:
    return {"type": "text", "text": exchange.question}


def _spoken(exchange: Exchange, rng: Random) -> dict[str, Any]:
    sound, _ = utterance(exchange.question, some_voice(rng, HELD_OUT), rng)
    data = base64.b64encode(wav(sound)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return file.getvalue()


def wav(sound: Sound) -> bytes:
    """The sound as a WAV file: 16-bit mono at `RATE`."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes((sound * 32767).astype("<i2").tobytes())
    return file.getvalue()


def mp4(clip: FilmedClip) -> bytes:
    """The clip as an MP4 file: H.264 without a sound track."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"crf": "20", "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", _FRAME_RATE, options=options)
        stream.width, stream.height = clip.size
        stream.pix_fmt = "yuv420p"
        for number in range(round(clip.seconds * _FRAME_RATE)):
            frame = av.VideoFrame.from_ndarray(np.asarray(clip.frame(number / _FRAME_RATE)), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, _FRAME_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
