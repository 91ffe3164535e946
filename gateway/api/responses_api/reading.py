"""Converts a body of `POST /v1/responses` to a request of chat completions, or raises an error about the wrong
field.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from msgspec import Struct

from gateway.api import companions, validation
from gateway.api.body_fields import Sent, check_json, is_null, without_foreign
from gateway.api.field_errors import LONGEST_MESSAGE, FieldErrors, choices_of, fields_of, tags_of
from gateway.api.long_strings import text_in
from gateway.api.plain_values import plain
from gateway.api.responses_api import schema
from gateway.api.responses_api.chat_form import Places, chat_form
from gateway.api.responses_api.schema import IGNORED, REFUSED, REFUSED_OPTIONS, ResponsesRequest
from gateway.api.schema import ChatCompletionRequest
from gateway.bodies.json_body import JsonBody
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError

_ERRORS = FieldErrors(
    {
        "": fields_of(ResponsesRequest) | IGNORED,
        "input": fields_of(*get_args(schema.Item)) | {"type"},
        "content": fields_of(*get_args(schema.Part)) | {"type"},
        "summary": fields_of(schema.SummaryPart),
        "output": fields_of(*get_args(schema.Part)) | {"type"},
        "tools": fields_of(schema.FlatTool),
        "tool_choice": fields_of(schema.FlatNamedTool, schema.FlatAllowedTools) | {"type"},
        "text": fields_of(schema.TextOptions),
        "format": fields_of(*get_args(schema.TextFormat)) | {"type"},
        "reasoning": fields_of(schema.ReasoningOptions),
        "stream_options": fields_of(schema.ResponseStreamOptions),
    },
    {
        "role": choices_of(schema.MessageItem, "role"),
        "include": get_args(schema.Included),
        "input.type": tags_of(schema.Item),
        "content.type": (*tags_of(schema.Part), "reasoning_text"),
        "summary.type": ("summary_text",),
        "output.type": tags_of(schema.Part),
        "tools.type": ("function",),
        "tool_choice": choices_of(ResponsesRequest, "tool_choice"),
        "tool_choice.type": tags_of(schema.ToolChoice),
        "format.type": tags_of(schema.TextFormat),
        "text.verbosity": choices_of(schema.TextOptions, "verbosity"),
        "reasoning.effort": choices_of(schema.ReasoningOptions, "effort"),
        "reasoning.summary": choices_of(schema.ReasoningOptions, "summary"),
    },
    REFUSED_OPTIONS,
)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Wanted(Struct, frozen=True):
    """A request that has been read.

    Attributes:
        request: The request as it was sent.
        chat: The chat request that asks for the same answer.
        places: Translates a path in `chat` into the path of the same data in `request`.
    """

    request: ResponsesRequest
    chat: ChatCompletionRequest
    places: Places


def read(body: JsonBody, limits: Limits) -> Wanted:
    """The request in `body`. After the call, `body` keeps only the long strings that are media. In place of each of
    these strings, the request contains a marker.

    Args:
        limits: Limits on the text of a request.

    Raises:
        OmniError: 400 or 413, as in `gateway.api.validation.parse`.
    """
    request = _decoded(body)
    chat, places = chat_form(request)
    if body.strings:
        media = {*validation.media_markers(chat, body.strings)}
        if text := text_in(request, media, body, limits):
            body.restore(text)
            request = _decoded(body)
            chat, places = chat_form(request)
    try:
        validation.check(chat)
    except OmniError as error:
        raise OmniError(places.error(error.info)) from error
    return Wanted(request, chat, places)


def _decoded(body: JsonBody) -> ResponsesRequest:
    try:
        sent = {name: Sent(name, value) for name, value in _OBJECT.decode(body.outline).items() if not is_null(value)}
        served = without_foreign(sent, IGNORED, REFUSED)
        fields = {name: plain(msgspec.json.decode(field.value), schema.VERBATIM) for name, field in served.items()}
        _drop_companions(fields.get("input"))
        companions.drop_companions_of_tools(fields.get("tools"))
        return msgspec.convert(fields, ResponsesRequest)
    except OmniError:
        check_json(body)
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        check_json(body)
        raise _ERRORS.explained(body.in_words_of_sender(str(error), LONGEST_MESSAGE)) from error


def _drop_companions(items: Any) -> None:
    """Remove the fields that do not change the answer from decoded items, in place. If a message has no field `type`,
    add the type ``message``. Values that are not an item or a part are not changed.
    """
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        if "role" in item:
            item.setdefault("type", "message")
        companions.drop(item, schema.ITEM_COMPANIONS)
        for field in ("content", "output", "summary"):
            parts = item.get(field)
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict):
                    companions.drop(part, companions.OF_PARTS)
                    if part.get("type") == "output_text":
                        companions.drop(part, schema.OUTPUT_TEXT_COMPANIONS)
