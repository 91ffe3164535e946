"""Normalises decoded JSON to the form that the types of the request describe."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

_LARGEST_INTEGER = 2**63


def plain(value: Any, but: Container[str] = ()) -> Any:
    """`value` without fields that are null, and with whole numbers as integers: 16.0 becomes 16.

    Objects and lists are changed in place. Entries of a list are kept, even if they are null.

    Args:
        but: Names of fields whose values are not changed.
    """
    match value:
        case dict():
            for name in [name for name, inner in value.items() if inner is None]:
                del value[name]
            for name, inner in value.items():
                if isinstance(inner, dict | list | float) and name not in but:
                    value[name] = plain(inner, but)
        case list():
            for index, inner in enumerate(value):
                if isinstance(inner, dict | list | float):
                    value[index] = plain(inner, but)
        case float() if value.is_integer() and abs(value) < _LARGEST_INTEGER:
            return int(value)
    return value
