"""The events that clients send, as strict structs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType

from gateway.api import schema
from gateway.api.responses_api.schema import FlatTool, ToolChoice
from gateway.realtime.protocol.items import InputItem, Item, ItemId, Strict
from gateway.realtime.sounds.sound_formats import SoundFormat

Modalities = Annotated[list[Literal["text", "audio"]], Meta(min_length=1, max_length=2)]
MaxTokens: TypeAlias = Annotated[int, Meta(ge=1, le=4096)] | Literal["inf"]
Speed = Annotated[float, Meta(ge=0.25, le=1.5)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
Tools = Annotated[list[FlatTool], Meta(max_length=schema.MOST_TOOLS)]


# --- settings ---------------------------------------------------------------------------------------------------------


class SoundFormatOption(Strict):
    """``{"type": "audio/pcm", "rate": 24000}``, or G.711 at 8 kHz as ``audio/pcmu`` and ``audio/pcma``."""

    type: SoundFormat
    rate: int | None = None


class VoiceById(Strict):
    id: str


class Transcription(Strict):
    """Whether the user's speech is transcribed. `model` is accepted with any value, because there is only one model."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    delay: Any = None


class InputOptions(Strict):
    """The module `turn_options` reads `turn_detection`. `noise_reduction` has no effect: the model gets the sound
    unchanged.
    """

    format: SoundFormatOption | UnsetType | None = UNSET
    noise_reduction: Any | UnsetType = UNSET
    transcription: Transcription | UnsetType | None = UNSET
    turn_detection: Any | UnsetType = UNSET


class OutputOptions(Strict):
    format: SoundFormatOption | UnsetType | None = UNSET
    voice: str | VoiceById | UnsetType | None = UNSET
    speed: Speed | UnsetType | None = UNSET


class AudioOptions(Strict):
    input: InputOptions | None = None
    output: OutputOptions | None = None


class RetentionRatio(Strict, kw_only=True, tag_field="type", tag="retention_ratio"):
    """The fraction of the items that is kept when the conversation becomes too long. `token_limits` has no effect."""

    retention_ratio: Annotated[float, Meta(ge=0, le=1)]
    token_limits: Any = None


Truncation: TypeAlias = Literal["auto", "disabled"] | RetentionRatio


class AnswerOptions(Strict):
    """Settings that a client can set for one response, or for all responses of a session.

    The fields `temperature`, `seed`, `stage_sampling` and `ignore_eos` are not part of OpenAI's API. These fields have
    the same meaning as in chat completions. `prompt` must be empty. `reasoning` and `tracing` have no effect.
    """

    instructions: str | UnsetType | None = UNSET
    output_modalities: Modalities | UnsetType | None = UNSET
    tools: Tools | UnsetType | None = UNSET
    tool_choice: ToolChoice | UnsetType | None = UNSET
    max_output_tokens: MaxTokens | UnsetType | None = UNSET
    parallel_tool_calls: bool | UnsetType | None = UNSET
    temperature: schema.Temperature | UnsetType | None = UNSET
    seed: schema.Seed | UnsetType | None = UNSET
    stage_sampling: schema.SamplingByStage | UnsetType | None = UNSET
    ignore_eos: bool | UnsetType | None = UNSET
    audio: AudioOptions | None = None
    prompt: Any = None
    reasoning: Any = None
    tracing: Any = None


class SessionOptions(AnswerOptions):
    """An update of a session's settings. If a field is absent, its setting stays unchanged."""

    type: Literal["realtime"] | None = None
    model: str | None = None
    include: list[str] | UnsetType | None = UNSET
    truncation: Truncation | UnsetType | None = UNSET


class ResponseOptions(AnswerOptions):
    """The settings of one response. If `input` is present, the model gets `input` instead of the conversation."""

    conversation: Literal["auto", "none"] | None = None
    metadata: Metadata | None = None
    input: Annotated[list[InputItem], Meta(max_length=1000)] | None = None


# --- events -----------------------------------------------------------------------------------------------------------


class _Event(Strict, kw_only=True, tag_field="type"):
    event_id: Annotated[str, Meta(max_length=512)] | None = None


class SessionUpdate(_Event, kw_only=True, tag="session.update"):
    session: SessionOptions


class AudioAppend(_Event, kw_only=True, tag="input_audio_buffer.append"):
    audio: str


class AudioCommit(_Event, kw_only=True, tag="input_audio_buffer.commit"):
    pass


class AudioClear(_Event, kw_only=True, tag="input_audio_buffer.clear"):
    pass


class ItemCreate(_Event, kw_only=True, tag="conversation.item.create"):
    """`previous_item_id` is the id of an item, or ``root`` for the beginning of the conversation. Without this field,
    the new item is the last item.
    """

    item: Item
    previous_item_id: ItemId | None = None


class ItemRetrieve(_Event, kw_only=True, tag="conversation.item.retrieve"):
    item_id: ItemId


class ItemDelete(_Event, kw_only=True, tag="conversation.item.delete"):
    item_id: ItemId


class ItemTruncate(_Event, kw_only=True, tag="conversation.item.truncate"):
    item_id: ItemId
    audio_end_ms: Annotated[float, Meta(ge=0)]
    content_index: Annotated[int, Meta(ge=0)] = 0


class ResponseCreate(_Event, kw_only=True, tag="response.create"):
    response: ResponseOptions | None = None


class ResponseCancel(_Event, kw_only=True, tag="response.cancel"):
    response_id: str | None = None


ClientEvent: TypeAlias = (
    SessionUpdate
    | AudioAppend
    | AudioCommit
    | AudioClear
    | ItemCreate
    | ItemRetrieve
    | ItemDelete
    | ItemTruncate
    | ResponseCreate
    | ResponseCancel
)
