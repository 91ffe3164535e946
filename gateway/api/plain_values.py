"""Brings decoded JSON into the form that the request's types describe."""

from __future__ import annotations

from typing import Any

_LARGEST_INTEGER = 2**63


def plain(value: Any) -> Any:
    """`value` without fields that are null, and with whole numbers as integers: 16.0 is 16.

    Objects and lists are changed in place. An entry of a list stays, even if it is null.
    """
    match value:
        case dict():
            for name in [name for name, inner in value.items() if inner is None]:
                del value[name]
            for name, inner in value.items():
                if isinstance(inner, dict | list | float):
                    value[name] = plain(inner)
        case list():
            for index, inner in enumerate(value):
                if isinstance(inner, dict | list | float):
                    value[index] = plain(inner)
        case float() if value.is_integer() and abs(value) < _LARGEST_INTEGER:
            return int(value)
    return value
