"""Makes requests of every kind. Each request has exactly one correct answer, because it is greedy or sampled with a
seed.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from gateway.serving.warmup import gif, png, wav

_OPENINGS = ("Tell me about", "What do you know of", "Say something on", "Describe", "Why is there")
_SUBJECTS = ("the sea", "old trains", "bread", "the colour blue", "a quiet town", "numbers", "winter")


class TrialConversation(Struct, frozen=True):
    """One request.

    Attributes:
        name: A unique name, such as ``speech 3``.
        kind: The kind of request, such as ``speech``.
        body: The body of the request.
        spoken: Whether the answer has speech.
    """

    name: str
    kind: str
    body: dict[str, Any]
    spoken: bool

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


def conversations(seed: int, *, of_each: int, speech: bool) -> list[TrialConversation]:
    """Make `of_each` requests of each kind. The same seed gives the same requests.

    Requests for spoken answers are made only with `speech`.
    """
    draw = random.Random(seed)
    kinds = {**_WRITTEN, **(_SPOKEN if speech else {})}
    return [
        TrialConversation(f"{kind} {number}", kind, make(draw), kind in _SPOKEN)
        for kind, make in kinds.items()
        for number in range(of_each)
    ]


def _body(draw: random.Random, tokens: int, *media: dict[str, Any], **fields: Any) -> dict[str, Any]:
    text = f"{draw.choice(_OPENINGS)} {draw.choice(_SUBJECTS)}, in {draw.randint(2, 99)} words."
    content = [*media, {"type": "text", "text": text}]
    return {
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": draw.randint(tokens // 2, tokens),
        "ignore_eos": True,
        **fields,
    }


def _url(kind: str, media_type: str, data: bytes) -> dict[str, Any]:
    return {"type": kind, kind: {"url": f"data:{media_type};base64,{base64.b64encode(data).decode()}"}}


def _image() -> dict[str, Any]:
    return _url("image_url", "image/png", png())


def _sound() -> dict[str, Any]:
    return _url("audio_url", "audio/wav", wav())


def _clip() -> dict[str, Any]:
    return _url("video_url", "image/gif", gif())


def _speech(draw: random.Random) -> dict[str, Any]:
    frames = draw.randint(10, 40)  # the speech of a checkpoint with random weights may never end by itself
    audio = {"voice": "ethan", "format": "pcm16"}
    return {
        "modalities": ["text", "audio"],
        "audio": audio,
        "talker_max_new_tokens": frames,
        "seed": draw.randint(0, 99),
    }


def _drawn(draw: random.Random) -> dict[str, Any]:
    # `top_k` is small, so that few tokens are possible. If there were many tokens of similar probability, the random
    # number would often be close to the border between two tokens. Then the different rounding in another batch would
    # change the token.
    return {"temperature": 0.8, "top_k": 5, "seed": draw.randint(0, 2**31)}


_WRITTEN: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "text": lambda draw: _body(draw, 40, stream=True),
    "long text": lambda draw: _body(draw, 160, stream=True),
    "drawn text": lambda draw: _body(draw, 40) | _drawn(draw),
    "picture": lambda draw: _body(draw, 24, _image(), stream=True),
    "sound": lambda draw: _body(draw, 24, _sound()),
    "clip": lambda draw: _body(draw, 24, _clip(), _sound(), stream=True),
}
_SPOKEN: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "speech": lambda draw: _body(draw, 24, stream=True) | _drawn(draw) | _speech(draw),
    "whole speech": lambda draw: _body(draw, 16) | _speech(draw),
    "speech on a picture": lambda draw: _body(draw, 16, _image(), stream=True) | _speech(draw),
}
