"""Explains what is wrong with a field of a request. The errors have the structure of OpenAI's errors. They contain the
path of the field and the known values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from omni_pipeline.errors import OmniError, bad_request

# A message quotes the wrong value, which may be megabytes long. So a longer message is cut after this number of
# characters.
LONGEST_MESSAGE = 400
# Largest number of names that a message lists.
_FEW = 8

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_PATH = re.compile(r"(?P<what>.*) - at `(?P<path>\$.*)`", re.DOTALL)


class FieldErrors:
    """Turns msgspec's errors about the body of one endpoint into errors of the API.

    Args:
        names_within: The fields that are allowed in an object, keyed by the name of the field that contains the object.
            The fields of the body itself have the key "". Error messages suggest these names after "did you mean".
        values: The allowed values of a field, keyed by the last one or two names of its path. Messages list them after
            "known:".
        refused: Fields that are refused in any object, each with the reason.
    """

    def __init__(
        self,
        names_within: Mapping[str, frozenset[str]],
        values: Mapping[str, tuple[str, ...]],
        refused: Mapping[str, str],
    ) -> None:
        self._names_within = names_within
        self._values = values
        self._refused = refused

    def explained(self, text: str) -> OmniError:
        """The API's error for a msgspec error whose message is `text`."""
        what, parent = text, ""
        if match := _PATH.fullmatch(text):
            what, parent = match["what"], match["path"].removeprefix("$").removeprefix(".").replace("[...]", "")

        if (match := _UNKNOWN.fullmatch(what)) and parent and match[1] in self._refused:
            return unsupported(join(parent, match[1]), self._refused[match[1]])
        if match:
            param = join(parent, match[1])
            names = self._names_within.get(_last(parent), frozenset())
            message = f"Unknown field '{param}'{_suggestion(match[1], names)}."
            code = "unknown_parameter"
        elif match := _MISSING.fullmatch(what):
            param = join(parent, match[1])
            message = f"Missing required field '{param}'."
            code = "missing_required_parameter"
        else:
            param = parent
            message = f"Invalid '{param}': {what[:1].lower()}{what[1:]}{self._known(param, what)}."
            code = "invalid_value"
        if len(message) > LONGEST_MESSAGE:
            message = message[:LONGEST_MESSAGE] + "…"
            param = param[:LONGEST_MESSAGE]
        return bad_request(message, param=param or None, code=code)

    def _known(self, param: str, what: str) -> str:
        """The end of an error message: a list of the known values, if `what` reports an unknown value. Otherwise, the
        result is empty.
        """
        if not what.startswith(("Invalid value", "Invalid enum value")):
            return ""
        path = re.sub(r"\[\d+\]", "", param).split(".")
        values = self._values.get(".".join(path[-2:])) or self._values.get(path[-1]) or ()
        return f"; known: {', '.join(values)}" if values else ""


def within(error: msgspec.ValidationError, place: str) -> msgspec.ValidationError:
    """Adds the path of a value to an error about this value. The value was checked separately, so the path in `error`
    begins at the value. `place` is the path of the value in the body. In the result, the path begins at the body.
    """
    text = str(error)
    path = _PATH.fullmatch(text)
    if path is None:
        return msgspec.ValidationError(f"{text} - at `$.{place}`")
    return msgspec.ValidationError(f"{path['what']} - at `$.{place}{path['path'][1:]}`")


def invalid(param: str, reason: str) -> OmniError:
    return bad_request(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")


def unsupported(param: str, reason: str) -> OmniError:
    return bad_request(f"'{param}' is not supported: {reason}.", param=param, code="unsupported_parameter")


def join(parent: str, name: str) -> str:
    """The path of the field `name` in the object whose path is `parent`."""
    return f"{parent}.{name}" if parent else name


def _last(path: str) -> str:
    """The name of the field at `path`, without a list index."""
    return re.sub(r"\[\d+\]$", "", path).rpartition(".")[2]


def _suggestion(name: str, names: Collection[str]) -> str:
    """The end of a message about an unknown field.

    Args:
        names: The known fields of the object. For messages and parts, these are the fields of all types together.
    """
    if name in names:
        return "; this field is allowed only in other types of messages, parts or objects"
    close = difflib.get_close_matches(name[:64], names, n=1, cutoff=0.7)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f"; known: {', '.join(sorted(names))}" if 0 < len(names) <= _FEW else ""


# --- from types to names ---


def fields_of(*structs: type[msgspec.Struct]) -> frozenset[str]:
    """The names of all fields that at least one of the structs has."""
    return frozenset(name for struct in structs for name in struct.__struct_fields__)


def structs_of(hint: Any) -> list[type[msgspec.Struct]]:
    """The structs that are possible values of a field with this type."""
    return [kind for kind in get_args(hint) if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]


def tags_of(union: Any) -> tuple[str, ...]:
    """The tags of the structs in a tagged union."""
    return tuple(str(struct.__struct_config__.tag) for struct in structs_of(union))


def choices_of(struct: type[msgspec.Struct], field: str) -> tuple[str, ...]:
    """The allowed values of a field whose type is a `Literal`, with or without None."""
    kinds = [get_type_hints(struct)[field]]
    choices: tuple[str, ...] = ()
    while kinds:
        kind = kinds.pop()
        if get_origin(kind) is Literal:
            choices += get_args(kind)
        else:
            kinds += get_args(kind)
    return choices
