"""Reads a chat completions body into `schema.ChatCompletionRequest`, or raises an error about the wrong field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import get_args, get_type_hints

from gateway.api import schema
from gateway.api.body_fields import BodyFields
from gateway.api.companions import drop_companions, drop_companions_of_tools
from gateway.api.content_parts import has_scheme, medium_in
from gateway.api.field_errors import (
    FieldErrors,
    choices_of,
    fields_of,
    invalid,
    structs_of,
    tags_of,
    unsupported,
)
from gateway.api.grammars import grammar_of
from gateway.api.long_strings import text_in
from gateway.api.media_options import clip_options
from gateway.api.schema import EXTRA, ChatCompletionRequest
from gateway.api.tools import check_tools
from gateway.api.unserved_fields import IGNORED, REFUSED, REFUSED_OPTIONS
from gateway.bodies.json_body import JsonBody, LongString
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import bad_request

_TOKEN_ID = re.compile(r"[0-9]{1,10}")


# The fields that are allowed in an object, keyed by the name of the field that contains the object. Error messages
# suggest these names after "did you mean".
_NAMES_WITHIN: dict[str, frozenset[str]] = {
    "": fields_of(ChatCompletionRequest) | IGNORED | {EXTRA},
    EXTRA: fields_of(ChatCompletionRequest) | IGNORED,
    "messages": fields_of(*get_args(schema.ChatMessage)) | {"role"},
    "content": fields_of(*get_args(schema.Part)) | {"type"},
    "image_url": fields_of(schema.ImageAddress),
    "audio_url": fields_of(schema.Address),
    "video_url": fields_of(schema.Address),
    "input_audio": fields_of(schema.InputAudio),
    "file": fields_of(schema.FileContent),
    "mm_processor_kwargs": fields_of(schema.ClipOptions),
    "chat_template_kwargs": fields_of(schema.TemplateOptions),
    "audio": fields_of(schema.AudioOutput, schema.EarlierSpeech),
    "stream_options": fields_of(schema.StreamOptions),
    "tools": fields_of(schema.FunctionTool),
    "tool_choice": fields_of(schema.NamedTool, schema.AllowedToolsChoice) | {"type"},
    "tool_calls": fields_of(schema.EarlierCall),
    "function": fields_of(schema.FunctionDefinition, schema.EarlierFunction),
    "allowed_tools": fields_of(schema.AllowedTools),
    "response_format": fields_of(*get_args(schema.ResponseFormat)) | {"type"},
    "json_schema": fields_of(schema.NamedSchema),
    "structured_outputs": fields_of(schema.StructuredOutputs),
    "stage_sampling": fields_of(schema.SamplingByStage),
    **{stage: fields_of(*structs_of(hint)) for stage, hint in get_type_hints(schema.SamplingByStage).items()},
}


# The allowed values of a field, keyed by the last one or two names of its path. Error messages list them after
# "known:".
_VALUES = {
    "role": tags_of(schema.ChatMessage),
    "type": tags_of(schema.Part),
    "tools.type": ("function",),
    "tool_calls.type": ("function",),
    "tool_choice": choices_of(ChatCompletionRequest, "tool_choice"),
    "tool_choice.type": tags_of(schema.ToolChoice),
    "response_format.type": tags_of(schema.ResponseFormat),
    "modalities": choices_of(ChatCompletionRequest, "modalities"),
    "audio.format": get_args(schema.AudioFormat),
    "audio.chunks": choices_of(schema.AudioOutput, "chunks"),
    "image_url.detail": choices_of(schema.ImageAddress, "detail"),
}
_FIELDS = BodyFields(
    ChatCompletionRequest,
    FieldErrors(_NAMES_WITHIN, _VALUES, REFUSED_OPTIONS),
    ignored=IGNORED,
    refused=REFUSED,
    prepare={"messages": drop_companions, "tools": drop_companions_of_tools},
    verbatim=schema.VERBATIM,
)


def parse(body: JsonBody, limits: Limits) -> ChatCompletionRequest:
    """The request in `body`. After the call, `body.strings` keeps only the long strings that are base64 or data URLs of
    media, and the long strings in ignored fields. In place of each of these strings, the request contains a marker. All
    other long strings are put back into `body.outline`, which is the JSON of the body with the markers.

    Args:
        limits: Limits on the text of a request.

    Raises:
        OmniError: 400: ``invalid_json`` if `body` is not JSON; ``unknown_parameter``, ``unsupported_parameter``,
            ``unsupported_value``, ``missing_required_parameter`` or ``invalid_value`` with the path of the field. 413:
            ``text_too_large``.
    """
    request = _FIELDS.read(body)
    if body.strings and (text := text_in(request, {*media_markers(request, body.strings)}, body, limits)):
        body.restore(text)
        request = _FIELDS.read(body)
    check(request)
    return request


# --- long strings ---


def media_markers(request: ChatCompletionRequest, strings: Mapping[str, LongString]) -> Iterator[str]:
    """The markers of those long strings in `request` that are media or belong to ignored fields."""
    addresses = [*(request.images or ()), *(request.audios or ()), *(request.videos or ())]
    for message in request.messages:
        if isinstance(message, schema.AssistantMessage) and message.audio and message.audio.data:
            yield message.audio.data
        if message.content is None or isinstance(message.content, str):
            continue
        for part in message.content:
            medium = medium_in(part)
            if medium is None:
                continue
            if medium.may_be_base64 and medium.value in strings and not has_scheme(strings[medium.value]):
                yield medium.value
            else:
                addresses += medium.frames or [medium.value]
    for marker in addresses:
        if marker in strings and strings[marker].content[:5].lower() == b"data:":
            yield marker


# --- rules that types cannot express ---


def check(request: ChatCompletionRequest) -> None:
    """Check rules that types cannot express: fields that depend on each other, and values that are not supported."""
    _check_output(request)
    _check_tokens(request)
    for index, message in enumerate(request.messages):
        if isinstance(message, schema.AssistantMessage):
            _check_history(message, f"messages[{index}]")
    check_tools(request)
    clip_options(request)
    grammar_of(request)
    template = request.chat_template_kwargs or schema.TemplateOptions()
    if template.add_generation_prompt is False:
        raise unsupported(
            "chat_template_kwargs.add_generation_prompt",
            "the server always adds the start of an answer to the prompt",
        )
    if template.continue_final_message:
        raise unsupported("chat_template_kwargs.continue_final_message", "the server cannot continue an earlier answer")


def _check_output(request: ChatCompletionRequest) -> None:
    modalities = request.modalities or ()
    if len(set(modalities)) < len(modalities):
        raise invalid("modalities", "an entry is repeated")
    if (request.n or 1) > 1 and "audio" in modalities:
        raise bad_request(
            "'n' must be 1 for a spoken answer: only text answers can have several choices.",
            param="n",
            code="unsupported_value",
        )
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "it needs 'logprobs' to be true")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "it needs 'stream' to be true")
    audio = request.audio
    if request.stream and audio is not None and audio.chunks == "files" and audio.format not in (None, "wav"):
        raise bad_request(
            "'audio.chunks' can be 'files' only for the format 'wav': in the format "
            f"'{audio.format}', all chunks together form one file.",
            param="audio.chunks",
            code="unsupported_value",
        )


def _check_tokens(request: ChatCompletionRequest) -> None:
    if len({request.thinking_budget, request.thinking_token_budget} - {None}) > 1:
        raise invalid(
            "thinking_budget",
            "its value differs from the value of 'thinking_token_budget'; send only one of these two fields",
        )
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise invalid(
            "max_completion_tokens",
            "its value differs from the value of 'max_tokens'; send only one of these two fields",
        )
    thinker = request.stage_sampling and request.stage_sampling.thinker
    limit = (thinker and thinker.max_tokens) or request.max_completion_tokens or request.max_tokens
    if request.min_tokens is not None and limit is not None and request.min_tokens > limit:
        raise invalid("min_tokens", f"it is larger than the maximum number of tokens that the request sets ({limit})")
    for key in request.logit_bias or ():
        if not _TOKEN_ID.fullmatch(key) or int(key) >= 2**31:
            raise invalid("logit_bias", "its keys must be token ids written as strings")


def _check_history(message: schema.AssistantMessage, param: str) -> None:
    if message.function_call:
        raise unsupported(f"{param}.function_call", "use 'tool_calls'")
    spoken = message.audio and (message.audio.transcript if message.audio.id is None else message.audio.id)
    told = message.content is not None or message.refusal is not None or spoken is not None
    reasoned = message.reasoning_content is not None or message.reasoning is not None
    if not told and not reasoned and not message.tool_calls:
        reason = (
            "an earlier spoken answer needs its 'audio.id', or its text in 'content' or 'audio.transcript'"
            if message.audio
            else "an assistant message needs 'content' or 'tool_calls'"
        )
        raise bad_request(
            f"Missing required field '{param}.content': {reason}.",
            param=f"{param}.content",
            code="missing_required_parameter",
        )
