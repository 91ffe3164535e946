"""Reads the stream of a chat completion, from this server or a server with a similar API."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import msgspec
import soundfile
from msgspec import Struct

from gateway.bench.timeline import Failure, PromptTokens

_PCM16_BYTES = 2
DONE = "[DONE]"


class EventSplitter:
    """Splits a byte stream into the data of its server-sent events. The pieces from the network may end at any byte."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, received: bytes) -> list[str]:
        """Data of the events that are complete now. Comments and fields other than ``data`` are skipped."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        events: list[str] = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line and self._data:
                events.append("\n".join(self._data))
                self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[len(b"data:") :].removeprefix(b" ").decode(errors="replace"))
        return events


class Event(Struct, frozen=True):
    """The content of one event in a stream.

    Attributes:
        text: New text, or empty.
        audio_seconds: Length of new sound, or 0.
        tokens: Text tokens of the whole answer, if the event has `usage`.
        prompt: Tokens of the prompt, if the event has `usage` with cached tokens.
        finish_reason: The finish reason, if the event has one.
        failure: An error that replaces the rest of the answer.
    """

    text: str = ""
    audio_seconds: float = 0.0
    tokens: int | None = None
    prompt: PromptTokens | None = None
    finish_reason: str | None = None
    failure: Failure | None = None


class AnswerError(Exception):
    """Raised for an answer that cannot be read. `code` is one of the codes in `timeline.Failure`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ReceivedAudio(Struct):
    """Sound in base64, in an event or in a whole answer."""

    data: str | None = None


class _ReceivedDelta(Struct):
    content: str | None = None
    audio: ReceivedAudio | None = None


class _ReceivedChoice(Struct):
    delta: _ReceivedDelta = msgspec.field(default_factory=_ReceivedDelta)
    finish_reason: str | None = None


class _CompletionDetails(Struct):
    audio_tokens: int | None = None


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class ReceivedUsage(Struct):
    """The `usage` of an answer, as the server counts the tokens."""

    completion_tokens: int = 0
    completion_tokens_details: _CompletionDetails | None = None
    prompt_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def text_tokens(self) -> int:
        """The completion tokens without the speech tokens. In OpenAI's API, `completion_tokens` includes the speech
        tokens, and `completion_tokens_details` contains the number of speech tokens.
        """
        details = self.completion_tokens_details
        return self.completion_tokens - ((details and details.audio_tokens) or 0)

    @property
    def prompt(self) -> PromptTokens | None:
        """The prompt's tokens; None if the server does not report cached tokens."""
        details = self.prompt_tokens_details
        if details is None or details.cached_tokens is None:
            return None
        return PromptTokens(self.prompt_tokens, details.cached_tokens)


class ReceivedAudioMetadata(Struct):
    """The format of sound without a file header."""

    sample_rate_hz: int = 24_000
    channels: int = 1


class _ReceivedChunk(Struct):
    choices: list[_ReceivedChoice] = []
    modality: str | None = None
    audio_metadata: ReceivedAudioMetadata | None = None
    usage: ReceivedUsage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_ReceivedChunk)


def read_event(data: str) -> Event:
    """Read the data of one event other than ``[DONE]``.

    Sound is base64 in ``delta.audio.data`` (this server, OpenAI, SGLang-Omni), or in ``delta.content`` of a chunk whose
    top-level ``modality`` is ``audio`` (vLLM-Omni). The sound of each chunk is a separate WAV file, or 16-bit samples
    at the rate in ``audio_metadata`` (24 kHz if the chunk has no ``audio_metadata``).

    Raises:
        AnswerError: ``invalid_stream`` or ``invalid_audio``.
    """
    try:
        chunk = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise AnswerError("invalid_stream", f"an event is not a chunk of a chat completion: {error}") from error
    if chunk.error is not None:
        return Event(failure=failure_of({"error": chunk.error}, status=200))
    tokens, prompt = (None, None) if chunk.usage is None else (chunk.usage.text_tokens, chunk.usage.prompt)
    if not chunk.choices:
        return Event(tokens=tokens, prompt=prompt)
    choice = chunk.choices[0]
    text, sound = choice.delta.content or "", ""
    if choice.delta.audio is not None:
        sound = choice.delta.audio.data or ""
    elif chunk.modality == "audio":
        text, sound = "", text
    seconds = sound_seconds(sound, chunk.audio_metadata or ReceivedAudioMetadata()) if sound else 0.0
    return Event(text=text, audio_seconds=seconds, tokens=tokens, prompt=prompt, finish_reason=choice.finish_reason)


def failure_of(body: Any, status: int) -> Failure:
    """The error in a response body. The body may contain an error with the structure of OpenAI's errors, or the field
    ``detail`` of FastAPI. In all other cases, the message of the result is the text of the body.
    """
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return Failure(f"http_{status}", str(error), status)
    message = error.get("message") or error.get("detail") or str(error)
    code = error.get("code")
    if not isinstance(code, str) or not code:  # vLLM repeats the HTTP status in this field
        code = f"http_{status}"
    return Failure(code, str(message), status, error.get("param"))


def sound_seconds(encoded: str, metadata: ReceivedAudioMetadata) -> float:
    """Length of a WAV file, or of 16-bit samples in the format that `metadata` describes.

    Raises:
        AnswerError: ``invalid_audio``.
    """
    try:
        sound = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise AnswerError("invalid_audio", f"sound is not base64: {error}") from error
    if not sound.startswith(b"RIFF"):
        return len(sound) / (_PCM16_BYTES * metadata.channels * metadata.sample_rate_hz)
    try:
        return float(soundfile.info(io.BytesIO(sound)).duration)
    except soundfile.LibsndfileError as error:
        raise AnswerError("invalid_audio", f"sound is not a WAV file: {error}") from error
