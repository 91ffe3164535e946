"""Extracts the pictures from a data URL that contains a clip as a list of pictures. In this form, which vLLM defined,
commas separate the pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gateway.api.conversion import MediaSource
from gateway.bodies.json_body import LongString
from omni_pipeline.errors import bad_request

# `_HEAD` matches the beginning of a data URL with a clip of pictures. `_JPEG` matches the beginning of a JPEG in
# base64. In a JSON string, a slash may be escaped. Both patterns also match an escaped slash.
_HEAD = re.compile(rb"data:video(?:\\?/|\\u002f)jpeg(?:;[^,]{0,1000})?;base64,", re.IGNORECASE)
_JPEG = re.compile(rb"(?:\\?/|\\u002[fF])9j")


def pictures_in_url(source: MediaSource, most: int) -> Iterator[MediaSource] | None:
    """The pictures in the URL of `source`; None if the URL is not a clip of pictures, or is a file of another type.

    Args:
        most: Maximum number of pictures.

    Raises:
        OmniError: 400 ``video_too_many_frames``, or ``invalid_video`` for a picture without bytes.
    """
    if source.kind != "video" or source.form != "address":
        return None
    text = source.value.content if isinstance(source.value, LongString) else source.value.encode("utf-8", "replace")
    head = _HEAD.match(text)
    if head is None:
        return None
    number = text.count(b",", head.end()) + 1
    if number == 1 and not _JPEG.match(text, head.end()):
        return None
    check_number(number, most, source.param)
    if text.find(b",,", head.end() - 1) >= 0 or text.endswith(b","):
        raise bad_request(f"'{source.param}' has an empty picture.", param=source.param, code="invalid_video")
    return _cut(text, head.end(), source.param)


def check_number(number: int, most: int, param: str) -> None:
    """Refuse a clip of too many pictures. Raises OmniError (400 ``video_too_many_frames``)."""
    if number > most:
        raise bad_request(
            f"'{param}' is a clip of {number} pictures; this server allows {most}.",
            param=param,
            code="video_too_many_frames",
        )


def _cut(text: bytes | bytearray, start: int, param: str) -> Iterator[MediaSource]:
    """Extracts each picture from ``text[start:]`` only when the caller asks for it, so that the text is not in memory
    twice.
    """
    while start < len(text):
        comma = text.find(b",", start)
        end = len(text) if comma < 0 else comma
        picture = bytearray(memoryview(text)[start:end])
        yield MediaSource("image", LongString(0, picture, b"\\" in picture), param, "base64")
        start = end + 1
