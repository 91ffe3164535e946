"""Finds the long strings of a body that are text, and limits their size.

Long strings are stored separately from the rest of a body; see `gateway.bodies.json_body`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from gateway.api.field_errors import join
from gateway.bodies.json_body import JsonBody
from gateway.bodies.reader import text_too_large
from omni_pipeline.config.schema import Limits


def text_in(request: Any, media: Collection[str], body: JsonBody, limits: Limits) -> set[str]:
    """The markers of those long strings in `request` that are text.

    Args:
        request: The decoded body, in which markers replace the long strings.
        media: The markers of strings that are media, or that belong to ignored fields.

    Raises:
        OmniError: 413 if the body has too much text.
    """
    text: set[str] = set()
    size = len(body.outline)
    for param, value in _strings_in(request, ""):
        if value in body.strings and value not in media and value not in text:
            text.add(value)
            size += len(body.strings[value].content)
            if size > limits.text_bytes:
                raise text_too_large(limits.text_bytes, param)
    return text


def _strings_in(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Each string in `value`, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings_in(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield path, name
            yield from _strings_in(item, join(path, name))
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _strings_in(getattr(value, name), join(path, name))
