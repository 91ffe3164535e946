"""Reads a chat completions body into `schema.ChatCompletionRequest`, or raises an error about the wrong field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from gateway.api import schema
from gateway.api.companions import drop_companions
from gateway.api.content_parts import has_scheme, medium_in
from gateway.api.media_options import clip_options
from gateway.api.plain_values import plain
from gateway.api.schema import EXTRA, ChatCompletionRequest
from gateway.api.unserved_fields import IGNORED, REFUSED, REFUSED_OPTIONS
from gateway.bodies.json_body import JsonBody, LongString
from gateway.bodies.reader import text_too_large
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError, bad_request

_LONGEST_MESSAGE = 400  # the message quotes the wrong value, which may have megabytes

# maximum size, in bytes, of a value that is compared with the values without effect; a larger value is always refused
_LONGEST_HARMLESS = 256
_REQUIRED = ("messages",)
_TOKEN_ID = re.compile(r"[0-9]{1,10}")

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_PATH = re.compile(r"(?P<what>.*) - at `(?P<path>\$.*)`", re.DOTALL)


def _fields(*structs: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(name for struct in structs for name in struct.__struct_fields__)


def _structs(hint: Any) -> list[type[msgspec.Struct]]:
    """The structs that are possible values of a field with this type."""
    return [kind for kind in get_args(hint) if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]


def _tags(union: Any) -> tuple[str, ...]:
    """The tags of the structs in a tagged union."""
    return tuple(str(struct.__struct_config__.tag) for struct in _structs(union))


# The fields that are allowed in an object, keyed by the name of the field that contains the object. Error messages use
# them after "did you mean".
_NAMES_WITHIN = {
    "": _fields(ChatCompletionRequest) | IGNORED | {EXTRA},
    EXTRA: _fields(ChatCompletionRequest) | IGNORED,
    "messages": _fields(*get_args(schema.ChatMessage)) | {"role"},
    "content": _fields(*get_args(schema.Part)) | {"type"},
    "image_url": _fields(schema.ImageAddress),
    "audio_url": _fields(schema.Address),
    "video_url": _fields(schema.Address),
    "input_audio": _fields(schema.InputAudio),
    "file": _fields(schema.FileContent),
    "mm_processor_kwargs": _fields(schema.ClipOptions),
    "chat_template_kwargs": _fields(schema.TemplateOptions),
    "audio": _fields(schema.AudioOutput, schema.EarlierSpeech),
    "stream_options": _fields(schema.StreamOptions),
    "stage_sampling": _fields(schema.SamplingByStage),
    **{stage: _fields(*_structs(hint)) for stage, hint in get_type_hints(schema.SamplingByStage).items()},
}


def _choices(struct: type[msgspec.Struct], field: str) -> tuple[str, ...]:
    """The allowed values of a field whose type is a choice or an optional choice."""
    kinds = [get_type_hints(struct)[field]]
    choices: tuple[str, ...] = ()
    while kinds:
        kind = kinds.pop()
        if get_origin(kind) is Literal:
            choices += get_args(kind)
        else:
            kinds += get_args(kind)
    return choices


# The allowed values of a field, keyed by the last one or two names of its path. Error messages list them after
# "known:".
_VALUES = {
    "role": _tags(schema.ChatMessage),
    "type": _tags(schema.Part),
    "modalities": _choices(ChatCompletionRequest, "modalities"),
    "audio.format": get_args(schema.AudioFormat),
    "audio.chunks": _choices(schema.AudioOutput, "chunks"),
    "image_url.detail": _choices(schema.ImageAddress, "detail"),
}
_FEW = 8  # largest number of names that a message lists


def parse(body: JsonBody, limits: Limits) -> ChatCompletionRequest:
    """The request in `body`. After the call, the long strings in `body` are the strings that are represented by a
    marker in the request.

    They are base64 and data URLs of media, and strings that are never read. All other long strings are put back into
    the outline of `body`.

    Args:
        limits: Bounds on the text of a request.

    Raises:
        OmniError: 400: ``invalid_json`` if `body` is not JSON; ``unknown_parameter``, ``unsupported_parameter``,
            ``unsupported_value``, ``missing_required_parameter`` or ``invalid_value`` with the path of the field. 413:
            ``text_too_large``.
    """
    request = _decoded(body)
    if text := _long_text(request, body, limits):
        body.restore(text)
        request = _decoded(body)
    _check(request)
    return request


# --- from bytes to structs ---


_Fields = dict[str, msgspec.Raw]
_OBJECT = msgspec.json.Decoder(_Fields)
_HINTS = {
    name: hint
    for name, hint in get_type_hints(ChatCompletionRequest, include_extras=True).items()
    if name in ChatCompletionRequest.__struct_fields__
}


class _Sent(msgspec.Struct, frozen=True):
    """A field as it was sent: where, and the bytes of its value."""

    path: str
    value: msgspec.Raw


def _decoded(body: JsonBody) -> ChatCompletionRequest:
    """The request in the outline of `body`. Fields that are not read are skipped and not decoded."""
    try:
        return _request(_OBJECT.decode(body.outline), body.strings)
    except OmniError:
        _check_json(body)
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _check_json(body)
        raise _explained(body.in_words_of_sender(str(error), _LONGEST_MESSAGE)) from error


def _request(fields: _Fields, strings: Mapping[str, LongString]) -> ChatCompletionRequest:
    """The request with these fields. Raises msgspec.DecodeError for the first wrong field."""
    served = _without_foreign(_merged(fields, strings))
    values = {name: _value(name, sent) for name, sent in served.items()}
    for name in _REQUIRED:
        if name not in values:
            raise msgspec.ValidationError(f"Object missing required field `{name}`")
    return ChatCompletionRequest(**values)


def _merged(fields: _Fields, strings: Mapping[str, LongString]) -> dict[str, _Sent]:
    """The fields that are not null, with those in `extra_body`.

    Raises:
        OmniError: 400 if a field has two values.
    """
    merged = {name: _Sent(name, value) for name, value in fields.items() if not _is_null(value)}
    extra = merged.pop(EXTRA, None)
    if extra is None:
        return merged
    try:
        inner = _OBJECT.decode(extra.value)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{error} - at `$.{EXTRA}`") from error
    for name, value in inner.items():
        if _is_null(value):
            continue
        sent = _Sent(f"{EXTRA}.{name}", value)
        read = name in merged and name not in IGNORED
        if read and not _agree(_plain(merged[name].value), _plain(value), strings):
            raise _invalid(sent.path, f"it differs from '{name}'; send only one of them")
        merged.setdefault(name, sent)
    return merged


def _is_null(value: msgspec.Raw) -> bool:
    return memoryview(value) == b"null"


def _plain(value: msgspec.Raw) -> Any:
    return plain(msgspec.json.decode(value))


def _agree(one: Any, other: Any, strings: Mapping[str, LongString]) -> bool:
    """Whether two values are equal, with the long strings that their markers stand for."""
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(_agree(one[name], other[name], strings) for name in one)
        case list(), list():
            return len(one) == len(other) and all(_agree(*pair, strings) for pair in zip(one, other, strict=True))
        case str(), str() if one in strings and other in strings:
            return strings[one].content == strings[other].content
    return type(one) is type(other) and bool(one == other)


def _value(name: str, sent: _Sent) -> Any:
    """The value of a field of the request."""
    if name not in _HINTS:
        place = "" if sent.path == name else f" - at `$.{EXTRA}`"
        raise msgspec.ValidationError(f"Object contains unknown field `{name}`{place}")
    value = _plain(sent.value)
    if name == "messages":
        drop_companions(value)
    try:
        return msgspec.convert(value, _HINTS[name])
    except msgspec.ValidationError as error:
        text = str(error)
        path = _PATH.fullmatch(text)
        if path is None:
            raise msgspec.ValidationError(f"{text} - at `$.{sent.path}`") from error
        raise msgspec.ValidationError(f"{path['what']} - at `$.{sent.path}{path['path'][1:]}`") from error


def _without_foreign(fields: Mapping[str, _Sent]) -> dict[str, _Sent]:
    """`fields` without harmless foreign fields. Raises OmniError (400) for a field that is refused."""
    served = {}
    for name, sent in fields.items():
        if name in IGNORED:
            continue
        if name not in REFUSED:
            served[name] = sent
            continue
        harmless, reason = REFUSED[name]
        if memoryview(sent.value).nbytes > _LONGEST_HARMLESS or _plain(sent.value) not in harmless:
            raise _unsupported(sent.path, reason)
    return served


def _check_json(body: JsonBody) -> None:
    """Raise OmniError (400) if the outline of `body` is not a JSON object. This check comes before all checks of
    fields.
    """
    try:
        value = msgspec.json.decode(body.outline)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(body.flaw(error, _LONGEST_MESSAGE), code="invalid_json") from error
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object.", code="invalid_json")


# --- long strings ---


def _long_text(request: ChatCompletionRequest, body: JsonBody, limits: Limits) -> set[str]:
    """The markers in `request` of long strings that are text.

    Raises:
        OmniError: 413 if the body has too much text.
    """
    if not body.strings:
        return set()
    media = set(_media_markers(request, body.strings))
    text: set[str] = set()
    size = len(body.outline)
    for param, value in _strings_in(request, ""):
        if value in body.strings and value not in media and value not in text:
            text.add(value)
            size += len(body.strings[value].content)
            if size > limits.text_bytes:
                raise text_too_large(limits.text_bytes, param)
    return text


def _media_markers(request: ChatCompletionRequest, strings: Mapping[str, LongString]) -> Iterator[str]:
    """The markers in `request` of long strings that are media or are not read."""
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


def _strings_in(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Each string in `value`, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings_in(item, f"{path}[{index}]")
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _strings_in(getattr(value, name), _join(path, name))


# --- errors about fields ---


def _explained(text: str) -> OmniError:
    """The error in OpenAI's form for `text`, the message of a msgspec error."""
    what, parent = text, ""
    if match := _PATH.fullmatch(text):
        what, parent = match["what"], match["path"].removeprefix("$").removeprefix(".").replace("[...]", "")

    if (match := _UNKNOWN.fullmatch(what)) and parent and match[1] in REFUSED_OPTIONS:
        return _unsupported(_join(parent, match[1]), REFUSED_OPTIONS[match[1]])
    if match:
        param = _join(parent, match[1])
        names = _NAMES_WITHIN.get(_last(parent), frozenset())
        message = f"Unknown field '{param}'{_suggestion(match[1], names)}."
        code = "unknown_parameter"
    elif match := _MISSING.fullmatch(what):
        param = _join(parent, match[1])
        message = f"Missing required field '{param}'."
        code = "missing_required_parameter"
    else:
        param = parent
        message = f"Invalid '{param}': {what[:1].lower()}{what[1:]}{_known(param, what)}."
        code = "invalid_value"
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + "…"
        param = param[:_LONGEST_MESSAGE]
    return bad_request(message, param=param or None, code=code)


def _last(path: str) -> str:
    """The name of the field at `path`, without a list index."""
    return re.sub(r"\[\d+\]$", "", path).rpartition(".")[2]


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _known(param: str, what: str) -> str:
    """The end of a message, which lists the known values if `what` reports an unknown value; otherwise empty."""
    if not what.startswith(("Invalid value", "Invalid enum value")):
        return ""
    path = re.sub(r"\[\d+\]", "", param).split(".")
    values = _VALUES.get(".".join(path[-2:])) or _VALUES.get(path[-1]) or ()
    return f"; known: {', '.join(values)}" if values else ""


def _suggestion(name: str, names: Collection[str]) -> str:
    """The end of a message about an unknown field.

    Args:
        names: The known fields of the object. For messages and parts, these are the fields of all types together.
    """
    if name in names:
        return "; it is a field of other types of messages or parts"
    close = difflib.get_close_matches(name[:64], names, n=1, cutoff=0.7)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f"; known: {', '.join(sorted(names))}" if 0 < len(names) <= _FEW else ""


def _check(request: ChatCompletionRequest) -> None:
    """Check rules that types cannot express: fields that depend on each other, and values that are not supported."""
    _check_output(request)
    _check_tokens(request)
    for index, message in enumerate(request.messages):
        if isinstance(message, schema.AssistantMessage):
            _check_history(message, f"messages[{index}]")
    clip_options(request)
    template = request.chat_template_kwargs or schema.TemplateOptions()
    if template.add_generation_prompt is False:
        raise _unsupported("chat_template_kwargs.add_generation_prompt", "the model always begins a new answer")
    if template.continue_final_message:
        raise _unsupported("chat_template_kwargs.continue_final_message", "the model always begins a new answer")


def _check_output(request: ChatCompletionRequest) -> None:
    modalities = request.modalities or ()
    if len(set(modalities)) < len(modalities):
        raise _invalid("modalities", "an entry is repeated")
    if request.n not in (None, 1):
        raise bad_request("'n' must be 1: one answer for each request.", param="n", code="unsupported_value")
    if request.top_logprobs and not request.logprobs:
        raise _invalid("top_logprobs", "it needs 'logprobs' to be true")
    if request.stream_options is not None and not request.stream:
        raise _invalid("stream_options", "it needs 'stream' to be true")
    audio = request.audio
    if request.stream and audio is not None and audio.chunks == "files" and audio.format not in (None, "wav"):
        raise bad_request(
            f"'audio.chunks' can be 'files' only for 'wav': the chunks of '{audio.format}' are always one file.",
            param="audio.chunks",
            code="unsupported_value",
        )


def _check_tokens(request: ChatCompletionRequest) -> None:
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise _invalid("max_completion_tokens", "it differs from 'max_tokens'; send only one of them")
    thinker = request.stage_sampling and request.stage_sampling.thinker
    limit = (thinker and thinker.max_tokens) or request.max_completion_tokens or request.max_tokens
    if request.min_tokens is not None and limit is not None and request.min_tokens > limit:
        raise _invalid("min_tokens", "it is larger than the limit on tokens")
    for key in request.logit_bias or ():
        if not _TOKEN_ID.fullmatch(key) or int(key) >= 2**31:
            raise _invalid("logit_bias", "its keys must be token ids written as strings")


def _check_history(message: schema.AssistantMessage, param: str) -> None:
    if message.tool_calls or message.function_call:
        field = "tool_calls" if message.tool_calls else "function_call"
        raise _unsupported(f"{param}.{field}", "this server does not call tools")
    spoken = message.audio and (message.audio.transcript if message.audio.id is None else message.audio.id)
    if message.content is None and message.refusal is None and spoken is None:
        reason = (
            "an earlier spoken answer needs its 'audio.id', or its text here or in 'audio.transcript'"
            if message.audio
            else "an earlier answer needs its text"
        )
        raise bad_request(
            f"Missing required field '{param}.content': {reason}.",
            param=f"{param}.content",
            code="missing_required_parameter",
        )


def _invalid(param: str, reason: str) -> OmniError:
    return bad_request(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")


def _unsupported(param: str, reason: str) -> OmniError:
    return bad_request(f"'{param}' is not supported: {reason}.", param=param, code="unsupported_parameter")
