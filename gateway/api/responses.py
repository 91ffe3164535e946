"""Defines the response bodies of the OpenAI API, and makes them from the pipeline's messages."""

from __future__ import annotations

import base64
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from msgspec import UNSET, Struct, UnsetType

from gateway.api.schema import AudioFormat
from gateway.api.speech_format import CHANNELS, SAMPLE_RATE
from omni_pipeline.errors import ErrorInfo
from stages import messages
from stages.messages import FinishReason, TextDelta, TokenLogprob, TokenText, ToolCall

AnswerEnd: TypeAlias = FinishReason | Literal["tool_calls"]

# The number that stands for the log-probability of a token whose probability is 0, because JSON has no minus infinity.
# OpenAI uses the same number.
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
    """Parts of the answer, in tokens. Each codec frame counts as one of the `audio_tokens`. `text_tokens` include
    `reasoning_tokens`.
    """

    audio_tokens: int
    text_tokens: int
    reasoning_tokens: int


class Usage(Struct):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Audio(Struct):
    """A spoken answer; `data` is base64. Until `expires_at` (in seconds since 1970), a later request may contain the
    `id` of the answer instead of its text.

    `finish_reason` is ``stop`` if the speech ended by itself, and ``length`` if it reached the limit of its length.
    """

    id: str
    data: str
    expires_at: int
    transcript: str
    finish_reason: FinishReason


class CalledFunction(Struct):
    """The function of a call. `arguments` is a string that contains a JSON object."""

    name: str
    arguments: str


class Call(Struct):
    """A call of a tool."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class Message(Struct):
    """The answer.

    `content` is null if only speech was asked for, or if the answer has only calls. `audio` is left out if no speech
    was asked for, or if only calls were generated. `reasoning_content` is left out if there is no reasoning, and
    `tool_calls` if there are no calls.
    """

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    audio: Audio | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


class Choice(Struct):
    """One answer. `token_ids` is only present if it was asked for."""

    message: Message
    finish_reason: AnswerEnd
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
    """A piece of a spoken answer. Clients join the fields of all pieces to get the fields of `Audio`."""

    id: str | UnsetType = UNSET
    data: str | UnsetType = UNSET
    transcript: str | UnsetType = UNSET
    expires_at: int | UnsetType = UNSET
    finish_reason: FinishReason | UnsetType = UNSET


class AudioMetadata(Struct):
    """Describes the `data` of a piece. `frame_count` is the number of PCM samples per channel before compression."""

    format: str
    sample_rate_hz: int
    frame_count: int
    channels: int


class FunctionPiece(Struct):
    """A piece of the function of a call. The pieces of each field have to be joined."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallPiece(Struct):
    """A piece of the call number `index`. Only the first piece has `id` and `type`."""

    index: int
    function: FunctionPiece
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    audio: AudioPiece | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallPiece] | UnsetType = UNSET


class ChunkChoice(Struct):
    delta: Delta
    logprobs: Logprobs | None = None
    token_ids: list[int] | UnsetType = UNSET
    finish_reason: AnswerEnd | None = None
    index: int = 0


class CompletionChunk(Struct):
    """A piece of an answer. If the request did not ask for the usage, `usage` is left out. If the request asked for the
    usage, `usage` is null in all chunks except the last.
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
    """An error, in the structure that the API defines."""
    return ErrorBody(Error(message=info.message, type=info.type, param=info.param, code=info.code))


def usage(texts: Iterable[messages.TextDone], audio_frames: int) -> Usage:
    """The token counts of all choices together, in the structure that the API defines. The prompt counts only once. As
    in OpenAI's API, `completion_tokens` is the sum of text tokens and speech tokens.
    """
    counts = [done.usage for done in texts]
    prompt, media = counts[0], counts[0].media_tokens
    text_tokens = sum(count.completion_tokens for count in counts)
    completion_tokens = text_tokens + audio_frames
    return Usage(
        prompt_tokens=prompt.prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt.prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptDetails(
            cached_tokens=prompt.cached_tokens,
            audio_tokens=media.get("audio", 0),
            image_tokens=media.get("image", 0),
            video_tokens=media.get("video", 0),
        ),
        completion_tokens_details=CompletionDetails(
            audio_tokens=audio_frames,
            text_tokens=text_tokens,
            reasoning_tokens=sum(count.reasoning_tokens for count in counts),
        ),
    )


def logprobs(tokens: Iterable[TokenLogprob]) -> Logprobs:
    """Some tokens and their log-probabilities, in the structure that the API defines."""
    return Logprobs(
        [
            ChosenLogprob(
                token=token.chosen.token,
                logprob=max(token.chosen.logprob, _LEAST_LOGPROB),
                bytes=token.chosen.bytes,
                top_logprobs=[token_logprob(candidate) for candidate in token.top],
            )
            for token in tokens
        ]
    )


def token_logprob(token: TokenText) -> Logprob:
    """One token and its log-probability, in the structure that the API defines."""
    return Logprob(token=token.token, logprob=max(token.logprob, _LEAST_LOGPROB), bytes=token.bytes)


class WrittenText(Struct, frozen=True):
    """The text of one choice of a complete answer: its pieces and its end."""

    deltas: list[TextDelta]
    done: messages.TextDone

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def reasoning(self) -> str:
        return "".join(delta.reasoning for delta in self.deltas)

    @property
    def calls(self) -> list[ToolCall]:
        return [call for delta in self.deltas for call in delta.calls]


class Speech(Struct, frozen=True):
    """The speech of a complete answer.

    Attributes:
        data: The encoded sound; in a stream, only the last part of the sound.
        done: The number of codec frames, and the reason why the speech ended.
        expires_at: Time (in seconds since 1970) until which the server keeps the transcript.
    """

    data: bytes
    done: messages.AudioDone
    expires_at: int


class AnswerFormat:
    """Writes one answer, as a single body or in chunks that all have the same id.

    Args:
        answer_id: ``chatcmpl-…``.
        model: The name under which the model is served.
        audio_format: Format of the speech; None for an answer without speech.
        with_content: Whether text was asked for. If False, text is sent only as the transcript of the speech.
        with_logprobs: Whether log-probabilities were asked for. If True, a choice without log-probabilities has an
            empty list.
        with_ids: Whether the ids of the generated tokens were asked for.
        with_usage: Whether chunks contain the `usage` field.

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
        self._calls: Counter[int] = Counter()  # number of tool calls that have been sent in chunks, by choice

    def whole(self, texts: list[WrittenText], speech: Speech | None) -> Completion:
        """The answer in one piece. `texts` contains the text of each choice, in the order of the choices."""
        spoken = None if speech is None else speech.done
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._choice(text, speech) for text in texts],
            usage=usage([text.done for text in texts], spoken.frames if spoken is not None else 0),
        )

    def _choice(self, text: WrittenText, speech: Speech | None) -> Choice:
        tokens = [token for delta in text.deltas for token in delta.logprobs]
        content, calls = text.text, text.calls
        message = Message(content=content if self._with_content and (content or not calls) else None)
        if reasoning := text.reasoning:
            message.reasoning_content = reasoning
        if calls:
            message.tool_calls = [Call(_call_id(), CalledFunction(call.name, call.arguments)) for call in calls]
        if speech is not None:
            message.audio = Audio(
                id=self.audio_id,
                data=_base64(speech.data),
                expires_at=speech.expires_at,
                transcript=content,
                finish_reason=speech.done.reason,
            )
        return Choice(
            message=message,
            finish_reason=self._finish_reason(text.done, None if speech is None else speech.done),
            logprobs=logprobs(tokens) if self._with_logprobs else None,
            token_ids=[token for delta in text.deltas for token in delta.ids] if self._with_ids else UNSET,
            index=text.done.choice,
        )

    def opening(self, choice: int) -> CompletionChunk:
        """The first chunk of a choice, which contains the role."""
        opening = Delta(role="assistant", content="" if self._with_content else UNSET)
        return self._chunk([ChunkChoice(opening, index=choice)])

    def deltas(self, delta: TextDelta) -> list[CompletionChunk]:
        """The chunks for a part of an answer. The first chunk has the part's log-probabilities and ids.

        Reasoning and text come in separate chunks. If only speech was asked for, the text is a part of the transcript.
        Each call becomes two chunks: the first chunk has the name of the call, and the second chunk has the arguments.
        """
        pieces: list[Delta] = []
        if delta.reasoning:
            pieces.append(Delta(reasoning_content=delta.reasoning))
        if delta.text or not (delta.reasoning or delta.calls):
            text = delta.text
            pieces.append(
                Delta(content=text) if self._with_content else Delta(audio=self._audio_piece(transcript=text))
            )
        for call in delta.calls:
            place = self._calls[delta.choice]
            begin = FunctionPiece(name=call.name, arguments="")
            pieces += [
                Delta(tool_calls=[CallPiece(place, begin, id=_call_id(), type="function")]),
                Delta(tool_calls=[CallPiece(place, FunctionPiece(arguments=call.arguments))]),
            ]
            self._calls[delta.choice] += 1
        choices = [
            ChunkChoice(
                piece,
                logprobs=logprobs([] if index else delta.logprobs) if self._with_logprobs else None,
                token_ids=([] if index else delta.ids) if self._with_ids else UNSET,
                index=delta.choice,
            )
            for index, piece in enumerate(pieces)
        ]
        return [self._chunk([choice]) for choice in choices]

    def audio(self, data: bytes, frame_count: int) -> CompletionChunk:
        """A chunk with the next part of the encoded speech, `data`. `frame_count` is the number of PCM frames that
        were encoded for this part.
        """
        return self._audio_chunk(self._audio_piece(data=_base64(data)), frame_count)

    def last_audio(self, speech: Speech, frame_count: int, transcript: str) -> CompletionChunk:
        """The last chunk of the speech. It has the whole transcript if the transcript was not sent in pieces."""
        piece = self._audio_piece(
            data=_base64(speech.data),
            transcript=transcript if self._with_content else UNSET,
            expires_at=speech.expires_at,
            finish_reason=speech.done.reason,
        )
        return self._audio_chunk(piece, frame_count)

    def finish(self, done: messages.TextDone, spoken: messages.AudioDone | None) -> CompletionChunk:
        """The last chunk of a choice, which contains the finish reason."""
        reason = self._finish_reason(done, spoken)
        return self._chunk([ChunkChoice(Delta(), finish_reason=reason, index=done.choice)])

    def usage(self, texts: Iterable[messages.TextDone], spoken: messages.AudioDone | None) -> list[CompletionChunk]:
        """The last chunk, which contains the token usage of all choices. Returns no chunk if the request did not ask
        for the usage.
        """
        if not self._with_usage:
            return []
        last = self._chunk([])
        last.usage = usage(texts, spoken.frames if spoken is not None else 0)
        return [last]

    def _finish_reason(self, done: messages.TextDone, spoken: messages.AudioDone | None) -> AnswerEnd:
        """The reason why the answer ended. If an answer is only speech, and the speech ended at the limit of its
        length, the reason is ``length``.
        """
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


def only_calls(text: str, *, called: bool, spoken: messages.AudioDone) -> bool:
    """Whether the client has asked for speech but the answer has only calls. The response then has no `audio`."""
    return called and not text and not spoken.frames


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
