"""Defines the answers of `POST /v1/audio/speech` and `GET /v1/audio/voices`."""

from __future__ import annotations

from msgspec import Struct

from gateway.api.schema import AudioFormat

MEDIA_TYPES: dict[AudioFormat, str] = {
    "aac": "audio/aac",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "pcm16": "audio/pcm",
    "wav": "audio/wav",
}


class SpeechUsage(Struct):
    """Tokens of one text that was read aloud: the tokens of the text and of its instructions, and the number of codec
    frames.
    """

    input_tokens: int
    output_tokens: int
    total_tokens: int


class SpeechAudioDelta(Struct, tag_field="type", tag="speech.audio.delta"):
    """The next piece of the sound as base64. All pieces together are one file."""

    audio: str


class SpeechAudioDone(Struct, tag_field="type", tag="speech.audio.done"):
    """The sound is complete."""

    usage: SpeechUsage


class VoiceList(Struct):
    """The voices of the model, and the default voice. A request that specifies no voice gets the default voice.
    `default` is null for a model without speech.
    """

    voices: list[str]
    default: str | None
