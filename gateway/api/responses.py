"""Defines the response bodies of the OpenAI API, and makes them from the pipeline's messages."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Iterable
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from gateway.api.schema import AudioFormat
from gateway.api.speech_format import CHANNELS, SAMPLE_RATE
from omni_pipeline.errors import ErrorInfo
from stages import messages
from stages.messages import FinishReason, TextDelta, TokenLogprob, TokenText

# The log-probability of a token of probability 0, as in OpenAI's answers, because JSON has no minus infinity.
_LEAST_LOGPROB = -9999.0


class Logprob(Struct):
    """One candidate token. `bytes` are the UTF-8 bytes of `token`."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(Logprob):
    """A generated token, with the most likely candidates at the same position."""

    top_logprobs: list[Logprob]


class Logprobs(Struct):
    content: list[ChosenLogprob]
    refusal: None = None


class PromptDetails(Struct):
    """Parts of the prompt, in tokens."""

    cached_tokens: int
    audio_tokens: int
    image_tokens: int
    video_tokens: int


class CompletionDetails(Struct):
    """Parts of the answer, in tokens. `audio_tokens` are codec frames."""

    audio_tokens: int
    text_tokens: int
    reasoning_tokens: int = 0


class Usage(Struct):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Audio(Struct):
    """A spoken answer; `data` is base64. Until `expires_at`, a message may name the answer by its `id` alone.

    `finish_reason` says why the speech ended: by itself, or at the limit of its length.
    """

    id: str
    data: str
    expires_at: int
    transcript: str
    finish_reason: FinishReason


class Message(Struct):
    """The answer. `content` is null if only speech was asked for; `audio` is left out if no speech was asked for."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    audio: Audio | UnsetType = UNSET


class Choice(Struct):
    """One answer. `token_ids` is left out unless it was asked for."""

    message: Message
    finish_reason: FinishReason
    logprobs: Logprobs | None = None
    token_ids: list[int] | UnsetType = UNSET
    index: int = 0


class Completion(Struct):
    """An answer that is sent as one JSON body."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: None = None


class AudioPiece(Struct):
    """A piece of a spoken answer. The fields of all pieces, joined, are the fields of `Audio`."""

    id: str | UnsetType = UNSET
    data: str | UnsetType = UNSET
    transcript: str | UnsetType = UNSET
    expires_at: int | UnsetType = UNSET
    finish_reason: FinishReason | UnsetType = UNSET


class AudioMetadata(Struct):
    """Describes the `data` of a piece. `frame_count` counts PCM samples per channel, at the rate before compression."""

    format: str
    sample_rate_hz: int
    frame_count: int
    channels: int


class Delta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    audio: AudioPiece | UnsetType = UNSET


class ChunkChoice(Struct):
    delta: Delta
    logprobs: Logprobs | None = None
    token_ids: list[int] | UnsetType = UNSET
    finish_reason: FinishReason | None = None
    index: int = 0


class CompletionChunk(Struct):
    """A piece of an answer. `usage` is left out unless the request asked for it. If the request did, `usage` is null in
    all chunks except the last.
    """

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    modality: Literal["text", "audio"] = "text"
    audio_metadata: AudioMetadata | UnsetType = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: None = None


class Error(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct):
    """The body of every error."""

    error: Error


class Model(Struct):
    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "omni-pipeline"


class ModelList(Struct):
    data: list[Model]
    object: Literal["list"] = "list"


class Index(Struct):
    """Name and version of the server, its model and its endpoints."""

    name: str
    version: str
    model: str
    endpoints: list[str]


def error_body(info: ErrorInfo) -> ErrorBody:
    """The API's form of an error."""
    return ErrorBody(Error(message=info.message, type=info.type, param=info.param, code=info.code))


def usage(counts: messages.TokenUsage, audio_frames: int) -> Usage:
    """The API's form of the token counts. `completion_tokens` counts text and speech together, as OpenAI does."""
    media = counts.media_tokens
    completion_tokens = counts.completion_tokens + audio_frames
    return Usage(
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=counts.prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptDetails(
            cached_tokens=counts.cached_tokens,
            audio_tokens=media.get("audio", 0),
            image_tokens=media.get("image", 0),
            video_tokens=media.get("video", 0),
        ),
        completion_tokens_details=CompletionDetails(audio_tokens=audio_frames, text_tokens=counts.completion_tokens),
    )


def logprobs(tokens: Iterable[TokenLogprob]) -> Logprobs:
    """The API's form of tokens with their log-probabilities."""
    return Logprobs(
        [
            ChosenLogprob(
                token=token.chosen.token,
                logprob=max(token.chosen.logprob, _LEAST_LOGPROB),
                bytes=token.chosen.bytes,
                top_logprobs=[_candidate(candidate) for candidate in token.top],
            )
            for token in tokens
        ]
    )


def _candidate(token: TokenText) -> Logprob:
    return Logprob(token=token.token, logprob=max(token.logprob, _LEAST_LOGPROB), bytes=token.bytes)


class Speech(Struct, frozen=True):
    """The speech of a complete answer.

    Attributes:
        data: The encoded sound. In a stream, the end of it.
        done: The number of codec frames, and why there are no more.
        expires_at: Time (in seconds since 1970) until which the server knows the transcript.
    """

    data: bytes
    done: messages.AudioDone
    expires_at: int


class AnswerFormat:
    """Writes one answer under one id, as a single body or in chunks.

    Args:
        answer_id: ``chatcmpl-…``.
        model: The name under which the model is served.
        audio_format: Format of the speech; None for an answer without speech.
        with_content: Whether text was asked for. If not, text is sent only as the transcript of the speech.
        with_logprobs: Whether log-probabilities were asked for. If so, a choice without them has an empty list.
        with_ids: Whether the ids of the generated tokens were asked for.
        with_usage: Whether chunks carry the `usage` field.

    Attributes:
        audio_id: ``audio_…``, the id of the speech.
    """

    def __init__(
        self,
        answer_id: str,
        model: str,
        *,
        audio_format: AudioFormat | None,
        with_content: bool,
        with_logprobs: bool,
        with_ids: bool,
        with_usage: bool,
    ) -> None:
        self._id = answer_id
        self.audio_id = f"audio_{uuid.uuid4().hex}"
        self._unsent_audio_id: str | UnsetType = self.audio_id
        self._created = int(time.time())
        self._model = model
        self._audio_format = audio_format
        self._with_content = with_content
        self._with_logprobs = with_logprobs
        self._with_ids = with_ids
        self._with_usage = with_usage

    def whole(self, deltas: list[TextDelta], done: messages.TextDone, speech: Speech | None) -> Completion:
        """The answer in one piece."""
        text = "".join(delta.text for delta in deltas)
        tokens = [token for delta in deltas for token in delta.logprobs]
        message = Message(content=text if self._with_content else None)
        if speech is not None:
            message.audio = Audio(
                id=self.audio_id,
                data=_base64(speech.data),
                expires_at=speech.expires_at,
                transcript=text,
                finish_reason=speech.done.reason,
            )
        spoken = None if speech is None else speech.done
        choice = Choice(
            message=message,
            finish_reason=self._finish_reason(done, spoken),
            logprobs=logprobs(tokens) if self._with_logprobs else None,
            token_ids=[token for delta in deltas for token in delta.ids] if self._with_ids else UNSET,
        )
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[choice],
            usage=usage(done.usage, spoken.frames if spoken is not None else 0),
        )

    def opening(self) -> CompletionChunk:
        """The first chunk, which gives the role."""
        return self._chunk([ChunkChoice(Delta(role="assistant", content="" if self._with_content else UNSET))])

    def delta(self, delta: TextDelta) -> CompletionChunk:
        """A chunk with more text or, if only speech was asked for, with more of the transcript."""
        piece = (
            Delta(content=delta.text) if self._with_content else Delta(audio=self._audio_piece(transcript=delta.text))
        )
        return self._chunk(
            [
                ChunkChoice(
                    piece,
                    logprobs=logprobs(delta.logprobs) if self._with_logprobs else None,
                    token_ids=delta.ids if self._with_ids else UNSET,
                )
            ]
        )

    def audio(self, data: bytes, frame_count: int) -> CompletionChunk:
        """A chunk with more of the encoded speech, made from `frame_count` PCM frames."""
        return self._audio_chunk(self._audio_piece(data=_base64(data)), frame_count)

    def last_audio(self, speech: Speech, frame_count: int, transcript: str) -> CompletionChunk:
        """The last chunk of the speech, with the whole transcript unless the transcript was sent in pieces."""
        piece = self._audio_piece(
            data=_base64(speech.data),
            transcript=transcript if self._with_content else UNSET,
            expires_at=speech.expires_at,
            finish_reason=speech.done.reason,
        )
        return self._audio_chunk(piece, frame_count)

    def closing(self, done: messages.TextDone, spoken: messages.AudioDone | None) -> list[CompletionChunk]:
        """The last chunks: the finish reason and, if asked for, the token usage."""
        chunks = [self._chunk([ChunkChoice(Delta(), finish_reason=self._finish_reason(done, spoken))])]
        if self._with_usage:
            last = self._chunk([])
            last.usage = usage(done.usage, spoken.frames if spoken is not None else 0)
            chunks.append(last)
        return chunks

    def _finish_reason(self, done: messages.TextDone, spoken: messages.AudioDone | None) -> FinishReason:
        """Why the answer ended. An answer that is only speech is cut off if its speech is cut off."""
        if spoken is not None and not self._with_content and spoken.reason == "length":
            return "length"
        return done.finish_reason

    def _audio_piece(self, **fields: Any) -> AudioPiece:
        """A piece of the speech. Only the first piece has the id, because clients join the fields of all pieces."""
        audio_id, self._unsent_audio_id = self._unsent_audio_id, UNSET
        return AudioPiece(id=audio_id, **fields)

    def _audio_chunk(self, piece: AudioPiece, frame_count: int) -> CompletionChunk:
        assert self._audio_format is not None
        chunk = self._chunk([ChunkChoice(Delta(audio=piece))])
        chunk.modality = "audio"
        chunk.audio_metadata = AudioMetadata(
            format=self._audio_format, sample_rate_hz=SAMPLE_RATE, frame_count=frame_count, channels=CHANNELS
        )
        return chunk

    def _chunk(self, choices: list[ChunkChoice]) -> CompletionChunk:
        return CompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=None if self._with_usage else UNSET,
        )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
