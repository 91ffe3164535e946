"""Defines the fields of a form that asks for a transcript or a translation, with their types and ranges."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from gateway.api.schema import ChatCompletionRequest, Count, Penalty, StageSampling
from gateway.bodies.multipart import Part, Room
from omni_pipeline.config.schema import Limits, MediaPolicy
from omni_pipeline.errors import OmniError, bad_request
from stages.messages import TranscriptTask

FILE = "file"
"""The name of the form field that contains the sound."""
MOST_FIELD_BYTES = 64 * 1024
"""Maximum size, in bytes, of any field except the file."""
LONGEST_LANGUAGE = 64
"""Maximum number of characters in the name of a language."""

Format: TypeAlias = Literal["json", "text", "verbose_json"]
Language = Annotated[str, Meta(max_length=LONGEST_LANGUAGE)]


class TranscriptRequest(StageSampling, kw_only=True):
    """A request for a transcript. The sampling fields apply to each piece of the sound.

    Attributes:
        model: Accepted with any value; the server has one model.
        language: Language of the sound: its code (ISO 639-1) or its English name.
        prompt: Text that the model gets before the sound.
        response_format: Form of the answer.
        stream: Whether to send the text as server-sent events while it is generated.
        include: Further content of the answer.
        chunking_strategy: Must be ``auto``, because the server always decides where to cut the sound.
        max_completion_tokens, max_tokens: Maximum number of tokens of each piece.
    """

    task: ClassVar[TranscriptTask] = "transcribe"

    model: str | None = None
    language: Language | None = None
    prompt: str | None = None
    response_format: Format = "json"
    stream: bool = False
    include: list[Literal["logprobs"]] = []
    chunking_strategy: Literal["auto"] | None = None
    max_completion_tokens: Count | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    def sampling(self) -> ChatCompletionRequest:
        """A chat request that has the sampling fields of this request, and no messages."""
        names = {*StageSampling.__struct_fields__, "max_completion_tokens", "presence_penalty", "frequency_penalty"}
        return ChatCompletionRequest(messages=[], **{name: getattr(self, name) for name in names})


class TranslationRequest(TranscriptRequest, kw_only=True):
    """A request for a translation.

    Attributes:
        to_language: Language of the translation, written in the same way as `language`.
    """

    task: ClassVar[TranscriptTask] = "translate"

    to_language: Language = "en"


class Form(Struct, frozen=True):
    """A request with its sound.

    Attributes:
        file: The undecoded sound.
    """

    request: TranscriptRequest
    file: bytearray


# Fields that are accepted and ignored, because they do not change the answer. For example, the usage is always sent.
IGNORED = frozenset({"user", "stream_include_usage"})

# Fields and values that this server does not support, although the OpenAI API or similar servers have them. Each entry
# contains the reason.
REFUSED = {
    "known_speaker_names": "the model does not distinguish speakers",
    "known_speaker_references": "the model does not distinguish speakers",
    "timestamp_granularities": "the model does not output the times of words",
}
REFUSED_FORMATS = {
    "srt": "subtitles need times, and the model does not output the times of words",
    "vtt": "subtitles need times, and the model does not output the times of words",
    "diarized_json": "the model does not distinguish speakers",
}

# A name such as `include[]`, `include[0]` or `chunking_strategy[type]` means the field before the bracket.
_BRACKETS = re.compile(r"\[[^\[\]]*\]$")
_EXPECTED = re.compile(r"Expected `(bool|int|float)[^`]*`, got `str`")
_IN_WORDS = {"bool": "'true' or 'false'", "int": "a whole number", "float": "a number"}
# Maximum number of characters of a wrong value that an error quotes.
_QUOTED = 40


def room_for(kind: type[TranscriptRequest], media: MediaPolicy, limits: Limits, name: str) -> Room:
    """The maximum size of the value of the form field `name`. This size depends on the name only, so it is known before
    the value arrives.

    Raises:
        OmniError: 400 ``unknown_parameter`` or ``unsupported_parameter``.
    """
    field = _field(name)
    if field == FILE:
        return Room(min(media.max_bytes, limits.body_bytes), code="media_too_large")
    known = {*kind.__struct_fields__, FILE}
    if field in REFUSED:
        raise _unsupported(field, REFUSED[field])
    if field not in known | IGNORED:
        close = difflib.get_close_matches(field, known, n=1, cutoff=0.7)
        hint = f" (did you mean '{close[0]}'?)" if close else f"; known: {', '.join(sorted(known))}"
        raise bad_request(f"Unknown field '{field}'{hint}.", param=field, code="unknown_parameter")
    return Room(MOST_FIELD_BYTES, code="field_too_large")


def parse(kind: type[TranscriptRequest], parts: Sequence[Part]) -> Form:
    """The request that the fields of a form contain. An empty field counts as a missing field.

    Args:
        kind: The kind of the request.
        parts: The fields; `room_for` has accepted their names.

    Raises:
        OmniError: 400 ``missing_required_parameter``, ``invalid_value``, ``unsupported_value``, or ``invalid_audio`` if
            the file is empty.
    """
    file: bytearray | None = None
    texts: dict[str, list[str]] = {}
    for part in parts:
        field = _field(part.name)
        if field == FILE:
            if file is not None:
                raise _invalid(FILE, "it is sent twice; send one file with each request")
            file = part.content
        elif part.content and field not in IGNORED:
            texts.setdefault(field, []).append(_text(part))
    if file is None:
        reason = f"Missing required field '{FILE}': it must contain the sound."
        raise bad_request(reason, param=FILE, code="missing_required_parameter")
    if not file:
        raise bad_request(f"'{FILE}' is empty.", param=FILE, code="invalid_audio")
    hints = get_type_hints(kind, include_extras=True)
    request = kind(**{field: _value(field, given, hints) for field, given in texts.items()})
    _check(request)
    return Form(request, file)


def _field(name: str) -> str:
    return _BRACKETS.sub("", name)


def _text(part: Part) -> str:
    try:
        return part.content.decode()
    except UnicodeDecodeError as error:
        raise _invalid(_field(part.name), f"it is not UTF-8 (byte {error.start})") from error


def _value(field: str, given: Sequence[str], hints: Mapping[str, Any]) -> Any:
    """The value of a field that is sent as text."""
    if field == "include":
        return [_convert(field, text, get_args(hints[field])[0]) for text in given]
    if len(given) > 1:
        raise _invalid(field, "it is sent more than once")
    [text] = given
    if field == "response_format" and text in REFUSED_FORMATS:
        raise _unsupported_value(field, text, REFUSED_FORMATS[text])
    if field == "chunking_strategy" and text != "auto":
        raise _unsupported_value(field, text, "the server always decides where to cut the sound; send 'auto'")
    return _convert(field, text, hints[field])


def _convert(field: str, text: str, hint: Any) -> Any:
    """The value that `text` represents: a string, a number, ``true`` or ``false``."""
    try:
        return msgspec.convert(text, hint, strict=False)
    except msgspec.ValidationError as error:
        what = str(error)
        reason = f"{what[:1].lower()}{what[1:]}"
        if "enum value" in what:
            reason = f"'{text[:_QUOTED]}' is not one of these values: {', '.join(get_args(hint))}"
        elif wanted := _EXPECTED.match(what):
            reason = f"'{text[:_QUOTED]}' is not {_IN_WORDS[wanted[1]]}"
        raise _invalid(field, reason) from error


def _check(request: TranscriptRequest) -> None:
    if request.include and request.response_format != "json":
        raise _unsupported_value("include", "logprobs", "only the response format 'json' can contain log probabilities")
    if request.stream and request.response_format == "verbose_json":
        raise _unsupported_value("response_format", "verbose_json", "a stream cannot have this format; send 'json'")
    if len({request.max_tokens, request.max_completion_tokens} - {None}) > 1:
        raise _invalid(
            "max_completion_tokens",
            "its value differs from the value of 'max_tokens'; send only one of these two fields",
        )


def _invalid(param: str, reason: str) -> OmniError:
    return bad_request(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")


def _unsupported(param: str, reason: str) -> OmniError:
    return bad_request(f"'{param}' is not supported: {reason}.", param=param, code="unsupported_parameter")


def _unsupported_value(param: str, value: str, reason: str) -> OmniError:
    return bad_request(f"'{param}' cannot be '{value[:_QUOTED]}': {reason}.", param=param, code="unsupported_value")
