"""Items of a conversation as clients send them, as strict structs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from gateway.api.schema import FunctionName, NonEmpty

ItemId = Annotated[str, Meta(min_length=1, max_length=128)]
CallId = Annotated[str, Meta(min_length=1, max_length=128)]


class Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """A JSON object in which unknown fields are an error."""


# --- parts of messages ------------------------------------------------------------------------------------------------


class InputTextPart(Strict, kw_only=True, tag_field="type", tag="input_text"):
    text: str


class OutputTextPart(Strict, kw_only=True, tag_field="type", tag="output_text"):
    text: str


class TextPart(Strict, kw_only=True, tag_field="type", tag="text"):
    """Text of an earlier answer, with the `type` of the beta API."""

    text: str


class InputAudioPart(Strict, kw_only=True, tag_field="type", tag="input_audio"):
    """Sound of the user: base64, in the format of the session's input. The model does not get `transcript`."""

    audio: NonEmpty
    transcript: str | None = None


class OutputAudioPart(Strict, kw_only=True, tag_field="type", tag="output_audio"):
    """An earlier spoken answer. The model reads the transcript; `audio` is not read."""

    transcript: str | None = None
    audio: str | None = None


class AudioPart(Strict, kw_only=True, tag_field="type", tag="audio"):
    """An earlier spoken answer, with the `type` of the beta API."""

    transcript: str | None = None
    audio: str | None = None


class InputImagePart(Strict, kw_only=True, tag_field="type", tag="input_image"):
    """A picture: a data URL, or another address that the media policy allows. `detail` has no effect."""

    image_url: NonEmpty
    detail: str | None = None


Part: TypeAlias = (
    InputTextPart | OutputTextPart | TextPart | InputAudioPart | OutputAudioPart | AudioPart | InputImagePart
)

TEXT_PARTS = (InputTextPart, OutputTextPart, TextPart)
SPOKEN_PARTS = (OutputAudioPart, AudioPart)


# --- items ------------------------------------------------------------------------------------------------------------


class _Item(Strict, kw_only=True):
    """`object`, `status` and `phase` are accepted and not read. Clients send these fields when they send back an item
    that they got from the server.
    """

    id: ItemId | None = None
    object: str | None = None
    status: str | None = None
    phase: Any = None


class MessageItem(_Item, kw_only=True, tag_field="type", tag="message"):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], Meta(max_length=1000)]


class FunctionCallItem(_Item, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function by the model. `arguments` is a string that contains a JSON object."""

    name: FunctionName
    arguments: str
    call_id: CallId | None = None


class FunctionCallOutputItem(_Item, kw_only=True, tag_field="type", tag="function_call_output"):
    """The result of a call."""

    call_id: CallId
    output: str


class ItemReference(_Item, kw_only=True, tag_field="type", tag="item_reference"):
    """Refers to an item of the conversation by its id, in the `input` of a response."""


Item: TypeAlias = MessageItem | FunctionCallItem | FunctionCallOutputItem
InputItem: TypeAlias = Item | ItemReference
