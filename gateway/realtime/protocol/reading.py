"""Reads one message of a client into an event, or raises an error about the wrong field."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from msgspec import Struct

from gateway.api.body_fields import check_json
from gateway.api.field_errors import LONGEST_MESSAGE, FieldErrors, choices_of, fields_of, structs_of, tags_of
from gateway.api.long_strings import text_in
from gateway.api.responses_api import schema as flat
from gateway.bodies.json_body import JsonBody, LongString
from gateway.realtime.protocol import client_events, items
from gateway.realtime.protocol.client_events import ClientEvent, ItemCreate, ResponseCreate
from gateway.realtime.sounds.sound_formats import SOUND_FORMATS
from omni_pipeline.config.schema import Limits

_EVENTS = {struct.__struct_config__.tag: struct for struct in structs_of(ClientEvent)}
_ITEMS = fields_of(*get_args(items.InputItem)) | {"type"}
_ERRORS = FieldErrors(
    {
        "": fields_of(*get_args(ClientEvent)) | {"type"},
        "session": fields_of(client_events.SessionOptions),
        "response": fields_of(client_events.ResponseOptions),
        "audio": fields_of(client_events.AudioOptions),
        "input": fields_of(client_events.InputOptions) | _ITEMS,
        "output": fields_of(client_events.OutputOptions),
        "format": fields_of(client_events.SoundFormatOption),
        "transcription": fields_of(client_events.Transcription),
        "item": _ITEMS,
        "content": fields_of(*get_args(items.Part)) | {"type"},
        "tools": fields_of(flat.FlatTool) | {"type"},
        "tool_choice": fields_of(flat.FlatNamedTool, flat.FlatAllowedTools) | {"type"},
    },
    {
        "type": tuple(map(str, _EVENTS)),
        "session.type": ("realtime",),
        "item.type": tags_of(items.Item),
        "input.type": tags_of(items.InputItem),
        "content.type": tags_of(items.Part),
        "format.type": SOUND_FORMATS,
        "role": choices_of(items.MessageItem, "role"),
        "output_modalities": ("text", "audio"),
        "tools.type": ("function",),
        "tool_choice": ("none", "auto", "required"),
        "tool_choice.type": tags_of(flat.ToolChoice),
        "conversation": ("auto", "none"),
    },
    {},
)
_DECODER = msgspec.json.Decoder(ClientEvent)


class _Head(Struct):
    event_id: Any = None


class Heard(Struct, frozen=True):
    """One message of a client.

    Attributes:
        event: The event.
        strings: The long strings of the message (its media), keyed by the marker that replaces the string in `event`.
    """

    event: ClientEvent
    strings: dict[str, LongString]


def event_id_of(body: JsonBody) -> str | None:
    """The id that the client gave the event in `body`, even if the rest of the event is wrong."""
    try:
        found = msgspec.json.decode(body.outline, type=_Head).event_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, str) and found not in body.strings else None


def read_event(body: JsonBody, limits: Limits) -> Heard:
    """The event in `body`.

    Raises:
        OmniError: 400 ``invalid_json``, 400 with the path of the wrong field, or 413 ``text_too_large``.
    """
    event = _decode(body)
    if body.strings and (text := text_in(event, set(_media_in(event)), body, limits)):
        body.restore(text)
        event = _decode(body)
    return Heard(event, body.strings)


def _decode(body: JsonBody) -> ClientEvent:
    try:
        return _DECODER.decode(body.outline)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        check_json(body)
        raise _ERRORS.explained(body.in_words_of_sender(str(error), LONGEST_MESSAGE)) from error


def _media_in(event: ClientEvent) -> list[str]:
    """The strings of an event that contain sound or a picture, including strings that the server ignores."""
    match event:
        case client_events.AudioAppend():
            return [event.audio]
        case ItemCreate():
            return _media_in_item(event.item)
        case ResponseCreate() if event.response is not None:
            return [medium for item in event.response.input or () for medium in _media_in_item(item)]
    return []


def _media_in_item(item: items.InputItem) -> list[str]:
    media = []
    for part in item.content if isinstance(item, items.MessageItem) else ():
        match part:
            case items.InputAudioPart() | items.OutputAudioPart() | items.AudioPart():
                media.append(part.audio or "")
            case items.InputImagePart():
                media.append(part.image_url)
    return media
