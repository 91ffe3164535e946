"""Reads the fields of a request body into a struct, or raises an error about the wrong field."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Generic, TypeVar, get_type_hints

import msgspec

from gateway.api.field_errors import LONGEST_MESSAGE, FieldErrors, invalid, unsupported, within
from gateway.api.plain_values import plain
from gateway.api.schema import EXTRA
from gateway.bodies.json_body import JsonBody, LongString
from omni_pipeline.errors import OmniError, bad_request

# Maximum size, in bytes, of the value of an unsupported field. The value is compared with the values that have no
# effect. A larger value is refused without a comparison.
_LONGEST_HARMLESS = 256

_Fields = dict[str, msgspec.Raw]
_OBJECT = msgspec.json.Decoder(_Fields)

Body = TypeVar("Body", bound=msgspec.Struct)


class Sent(msgspec.Struct, frozen=True):
    """A field as the client sent it: its path, and the bytes of its value."""

    path: str
    value: msgspec.Raw


class BodyFields(Generic[Body]):
    """The fields of one kind of request body.

    Args:
        kind: The struct that a body is read into.
        errors: Explains errors about these fields.
        ignored: Fields that are accepted and not read.
        refused: Fields that are recognised but not supported. For each field, the mapping contains the values that have
            no effect, and the reason why all other values are refused.
        prepare: Functions that change the value of a field before the value is checked, keyed by the name of the field.
        verbatim: Names of fields, at any depth, whose values are not changed. Within these values, a null is kept. In
            all other values, a field that is null counts as missing.
    """

    def __init__(
        self,
        kind: type[Body],
        errors: FieldErrors,
        *,
        ignored: Collection[str] = (),
        refused: Mapping[str, tuple[tuple[Any, ...], str]] | None = None,
        prepare: Mapping[str, Callable[[Any], None]] | None = None,
        verbatim: Collection[str] = (),
    ) -> None:
        self._kind = kind
        self._hints = {
            name: hint
            for name, hint in get_type_hints(kind, include_extras=True).items()
            if name in kind.__struct_fields__
        }
        self._required = [field.name for field in msgspec.structs.fields(kind) if field.required]
        self._errors = errors
        self._ignored = ignored
        self._refused = refused or {}
        self._prepare = prepare or {}
        self._verbatim = verbatim

    def read(self, body: JsonBody) -> Body:
        """Decode the outline of `body` and return the request. The outline is the JSON of the body, with markers in
        place of the long strings. Ignored fields are skipped without decoding.

        Raises:
            OmniError: 400: ``invalid_json`` if `body` is not JSON; ``unknown_parameter``, ``unsupported_parameter``,
                ``missing_required_parameter`` or ``invalid_value`` with the path of the field.
        """
        try:
            return self._request(_OBJECT.decode(body.outline), body.strings)
        except OmniError:
            check_json(body)
            raise
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            check_json(body)
            raise self._errors.explained(body.in_words_of_sender(str(error), LONGEST_MESSAGE)) from error

    # --- from bytes to structs ---

    def _request(self, fields: _Fields, strings: Mapping[str, LongString]) -> Body:
        """The request with these fields. Raises msgspec.DecodeError for the first wrong field."""
        served = without_foreign(self._merged(fields, strings), self._ignored, self._refused)
        values = {name: self._value(name, sent) for name, sent in served.items()}
        for name in self._required:
            if name not in values:
                raise msgspec.ValidationError(f"Object missing required field `{name}`")
        return self._kind(**values)

    def _merged(self, fields: _Fields, strings: Mapping[str, LongString]) -> dict[str, Sent]:
        """The fields that are not null, including the fields in `extra_body`.

        Raises:
            OmniError: 400 if a field has two values.
        """
        merged = {name: Sent(name, value) for name, value in fields.items() if not is_null(value)}
        extra = merged.pop(EXTRA, None)
        if extra is None:
            return merged
        try:
            inner = _OBJECT.decode(extra.value)
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(f"{error} - at `$.{EXTRA}`") from error
        for name, value in inner.items():
            if is_null(value):
                continue
            sent = Sent(f"{EXTRA}.{name}", value)
            read = name in merged and name not in self._ignored
            if read and not _agree(_plain(merged[name].value), _plain(value), strings):
                raise invalid(
                    sent.path, f"its value differs from the value of '{name}'; send only one of these two fields"
                )
            merged.setdefault(name, sent)
        return merged

    def _value(self, name: str, sent: Sent) -> Any:
        """The value of a field of the request."""
        if name not in self._hints:
            place = "" if sent.path == name else f" - at `$.{EXTRA}`"
            raise msgspec.ValidationError(f"Object contains unknown field `{name}`{place}")
        value = msgspec.json.decode(sent.value)
        if name not in self._verbatim:
            value = plain(value, self._verbatim)
        if name in self._prepare:
            self._prepare[name](value)
        try:
            return msgspec.convert(value, self._hints[name])
        except msgspec.ValidationError as error:
            raise within(error, sent.path) from error


def is_null(value: msgspec.Raw) -> bool:
    """Whether a field is null. A null field counts as missing."""
    return memoryview(value) == b"null"


def _plain(value: msgspec.Raw) -> Any:
    return plain(msgspec.json.decode(value))


def _agree(one: Any, other: Any, strings: Mapping[str, LongString]) -> bool:
    """Whether two values are equal, after their markers have been replaced by the long strings."""
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(_agree(one[name], other[name], strings) for name in one)
        case list(), list():
            return len(one) == len(other) and all(_agree(*pair, strings) for pair in zip(one, other, strict=True))
        case str(), str() if one in strings and other in strings:
            return strings[one].content == strings[other].content
    return type(one) is type(other) and bool(one == other)


def without_foreign(
    fields: Mapping[str, Sent], ignored: Collection[str], refused: Mapping[str, tuple[tuple[Any, ...], str]]
) -> dict[str, Sent]:
    """`fields` without ignored fields, and without unsupported fields whose value has no effect.

    Args:
        ignored: Names of fields that are not read.
        refused: Fields that are not supported. Each comes with the values that have no effect, and with the reason why
            all other values are refused. See `unserved_fields.REFUSED`.

    Raises:
        OmniError: 400 for a field that is refused.
    """
    served = {}
    for name, sent in fields.items():
        if name in ignored:
            continue
        if name not in refused:
            served[name] = sent
            continue
        harmless, reason = refused[name]
        if memoryview(sent.value).nbytes > _LONGEST_HARMLESS or not _is_one_of(_plain(sent.value), harmless):
            raise unsupported(sent.path, reason)
    return served


def _is_one_of(value: Any, allowed: Iterable[Any]) -> bool:
    """Whether a JSON value is one of the `allowed` values. 0 and false count as different values, although they are
    equal in Python.
    """
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)


def check_json(body: JsonBody) -> None:
    """Raise OmniError (400) if the outline of `body` is not a JSON object. An error in the JSON takes precedence over
    every error in a field.
    """
    try:
        value = msgspec.json.decode(body.outline)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(body.flaw(error, LONGEST_MESSAGE), code="invalid_json") from error
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object.", code="invalid_json")
