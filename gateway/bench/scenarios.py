"""Defines the requests of the bench, and makes their bodies."""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from msgspec import Struct, structs

from gateway.bench.media import Kind, Medium

FRAME_SECONDS = 0.08  # seconds of sound in one codec frame


class Input(StrEnum):
    """The media in a request, besides its text."""

    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"
    MIXED = "mixed"


class Output(StrEnum):
    """The kind of answer that a request asks for. Only `WHOLE_SPEECH` is not streamed."""

    TEXT = "text"
    SPEECH = "speech"
    WHOLE_SPEECH = "whole-speech"
    MIXED = "mixed"


class MediaAs(StrEnum):
    """The field of the body that contains the media."""

    PARTS = "parts"
    LISTS = "lists"


# Kinds of the media in each request.
KINDS: dict[Input, tuple[Kind, ...]] = {
    Input.TEXT: (),
    Input.IMAGE: ("image",),
    Input.AUDIO: ("audio",),
    Input.VIDEO: ("video",),
    Input.MIXED: ("image", "video", "audio"),
}


# The kinds of answers that a run with mixed output asks for: half of them streamed speech, a quarter text, a quarter
# whole spoken answers.
MIX = (Output.SPEECH, Output.SPEECH, Output.TEXT, Output.WHOLE_SPEECH)


class Scenario(Struct, frozen=True, kw_only=True):
    """One kind of request. If the output is mixed, there are several kinds of requests, which differ only in the kind
    of the answer.

    Attributes:
        input: Media in each request; ``mixed`` means a picture, a clip and a sound.
        output: Kind of the answers; ``mixed`` means the kinds in `MIX`.
        prompt_words: Number of words in the prompt.
        tokens: Number of text tokens in the answer; with `natural`, the maximum number.
        audio_frames: Number of codec frames of speech, 80 ms each; with `natural`, the maximum number. None means that
            the server decides the number. For spoken answers, None is only possible with `natural`.
        natural: Whether the model decides when an answer ends.
        same_media: Whether to send the same files each time, to measure the server's caches.
        voice, audio_format: Values in the `audio` field. If `voice` is None, the server uses its default voice.
        media_as: Whether media are sent as content parts of the message, or in the top-level lists `images`, `audios`
            and `videos`.
    """

    input: Input = Input.TEXT
    output: Output = Output.TEXT
    prompt_words: int = 64
    tokens: int = 64
    audio_frames: int | None = None
    natural: bool = False
    same_media: bool = False
    voice: str | None = None
    audio_format: str = "wav"
    media_as: MediaAs = MediaAs.PARTS

    @property
    def speech(self) -> bool:
        return self.output is not Output.TEXT

    @property
    def streamed(self) -> bool:
        return self.output is not Output.WHOLE_SPEECH


class BenchPrompt(Struct, frozen=True):
    """The content of one request. The server and the baseline get the same content."""

    text: str
    media: list[Medium] = []


def kinds_of(scenario: Scenario, count: int, seed: int | str) -> list[Scenario]:
    """The kinds of the requests, in the order in which the requests are sent. `count` is the number of requests. If the
    output is mixed, each group of four requests contains the kinds of `MIX` in random order, so every part of a run has
    the same mixture.
    """
    if scenario.output is not Output.MIXED:
        return [scenario] * count
    rng = random.Random(f"mix {seed}")
    outputs = [output for _ in range(0, count, len(MIX)) for output in rng.sample(MIX, len(MIX))]
    return [structs.replace(scenario, output=output) for output in outputs[:count]]


def body(scenario: Scenario, prompt: BenchPrompt, model: str) -> bytes:
    """The JSON body of a request for a chat completion, as `scenario` describes it. The output must not be mixed."""
    fields: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": _content(scenario, prompt)}],
        "modalities": ["text", "audio"] if scenario.speech else ["text"],
        "max_tokens": scenario.tokens,
    }
    if scenario.streamed:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    if scenario.media_as is MediaAs.LISTS:
        for medium in prompt.media:
            fields.setdefault(f"{medium.kind}s", []).append(_data_url(medium))
    if not scenario.natural:
        fields["ignore_eos"] = True
    if scenario.speech:
        fields["audio"] = {"format": scenario.audio_format}
        if scenario.voice is not None:
            fields["audio"]["voice"] = scenario.voice
        if scenario.audio_frames is not None:
            fields["talker_max_new_tokens"] = scenario.audio_frames + 1  # the last token does not become a frame
    return json.dumps(fields).encode()


def _content(scenario: Scenario, prompt: BenchPrompt) -> str | Sequence[dict[str, Any]]:
    if not prompt.media or scenario.media_as is MediaAs.LISTS:
        return prompt.text
    parts: list[dict[str, Any]] = [
        {"type": f"{medium.kind}_url", f"{medium.kind}_url": {"url": _data_url(medium)}} for medium in prompt.media
    ]
    return [*parts, {"type": "text", "text": prompt.text}]


def _data_url(medium: Medium) -> str:
    return f"data:{medium.type};base64,{base64.b64encode(medium.data).decode()}"


# Request fields that a server may refuse. Each entry explains which flag makes the bench send the field. Some entries
# also explain how to avoid the field.
_FLAGS = {
    "ignore_eos": "is sent because the lengths of the answers are fixed; with --natural, the field is not sent",
    "talker_max_new_tokens": "is sent because of --audio-frames or its default; with --natural and without "
    "--audio-frames, the field is not sent",
    "max_tokens": "comes from --tokens",
    "modalities": "comes from --output",
    "audio": "is sent because of --output, --voice and --audio-format",
    "images": "is sent because of --media-as lists; try --media-as parts",
    "audios": "is sent because of --media-as lists; try --media-as parts",
    "videos": "is sent because of --media-as lists; try --media-as parts",
    "image_url": "is sent because of --media-as parts; try --media-as lists",
    "audio_url": "is sent because of --media-as parts; try --media-as lists",
    "video_url": "is sent because of --media-as parts; try --media-as lists",
    "model": "comes from --model",
}


def explanation(param: str | None, message: str) -> str | None:
    """Explains why the bench sent the field that a server has refused. The reason is a flag, or a flag that is missing.
    The name of the field is taken from `param`. If `param` is missing, the name is taken from `message`, where it is in
    quotes. Returns None if the field is not known.
    """
    named = re.findall(r"\w+", param or "") or re.findall(r"""['"`](\w+)['"`]""", message)
    return next((f"`{field}` {_FLAGS[field]}" for field in named if field in _FLAGS), None)
