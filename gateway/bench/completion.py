"""Reads a chat completion that was not streamed, from this server or a server with a similar API."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from gateway.bench.events import AnswerError, ReceivedAudio, ReceivedAudioMetadata, ReceivedUsage, sound_seconds
from gateway.bench.timeline import PromptTokens


class Completion(Struct, frozen=True):
    """The content of a whole answer.

    Attributes:
        audio_seconds: Length of the sound; 0 for an answer without sound.
        tokens: Number of text tokens in `usage`; None if the server sent no `usage`.
        finish_reason: The finish reason that the server sent.
        prompt: The prompt's tokens in `usage`; None if the server does not report cached tokens.
    """

    audio_seconds: float
    tokens: int | None
    finish_reason: str | None
    prompt: PromptTokens | None = None


class _ReceivedMessage(Struct):
    audio: ReceivedAudio | None = None


class _ReceivedChoice(Struct):
    message: _ReceivedMessage
    finish_reason: str | None = None


class _ReceivedCompletion(Struct):
    choices: list[_ReceivedChoice]
    usage: ReceivedUsage | None = None


_decoder = msgspec.json.Decoder(_ReceivedCompletion)


def read_completion(body: bytes) -> Completion:
    """Read the body of an answer with status 200.

    The sound is base64 in ``message.audio.data``: in the first choice (this server, OpenAI, SGLang-Omni), or in a
    separate choice (vLLM-Omni).

    Raises:
        AnswerError: ``invalid_answer`` or ``invalid_audio``.
    """
    try:
        received = _decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise AnswerError("invalid_answer", f"the answer is not a chat completion: {error}") from error
    if not received.choices:
        raise AnswerError("invalid_answer", "the answer has no choices")
    sounds = [choice.message.audio.data for choice in received.choices if choice.message.audio is not None]
    return Completion(
        audio_seconds=sound_seconds(sounds[0], ReceivedAudioMetadata()) if sounds and sounds[0] else 0.0,
        tokens=None if received.usage is None else received.usage.text_tokens,
        prompt=None if received.usage is None else received.usage.prompt,
        finish_reason=received.choices[0].finish_reason,
    )
