"""Tests JSON bodies whose long strings are stored separately: base64 in long strings, text in long strings, and error
messages about long strings.
"""

from __future__ import annotations

import base64
import json
import random

import pytest

from gateway.bodies.json_body import LongString
from tests.gateway.json_bodies import read

DATA = random.Random(1).randbytes(2_500_000)  # long enough for several slices
TEXT = base64.b64encode(DATA)


def escaped(**escapes: str) -> bytearray:
    content = TEXT
    for character, escape in escapes.items():
        content = content.replace(character.encode(), escape.encode())
    return bytearray(content)


def characters(string: LongString) -> bytes:
    """All characters of a string, read piece by piece."""
    found, position = b"", 0
    while position < len(string.content):
        piece, position = string.characters(position)
        found += piece
    return found


@pytest.mark.parametrize(
    "escapes",
    [{"/": "\\/"}, {"+": "\\u002B", "=": "\\u003d"}, {"/": "\\/", "+": "\\u002b"}, {"A": "\\u0041"}],
)
def test_escaped_base64_is_the_same_base64(escapes):
    assert characters(LongString(0, escaped(**escapes), True)) == TEXT


def test_base64_without_escapes_is_itself():
    assert characters(LongString(0, bytearray(TEXT), False)) == TEXT


@pytest.mark.parametrize("end", [b"\\", b"\\u00", b"\\x", b"\\ud800", b"\n", b"\xff"])
def test_a_wrong_escape_is_an_error(end):
    with pytest.raises(ValueError, match=r"JSON|utf-8|truncated"):
        characters(LongString(0, bytearray(b"\\/" * 700_000 + end), True))


def test_some_strings_are_put_back():
    values = ["a" * 20_000, "b" * 20_000, "c" * 20_000]
    body = read(json.dumps(values).encode())
    first, second, third = body.strings
    body.restore({second})
    assert json.loads(body.outline) == [first, values[1], third]
    body.restore({first, third})
    assert json.loads(body.outline) == values


def test_messages_have_the_positions_and_the_text_of_the_body():
    data = b'["' + b"a" * 20_000 + b'", "' + b"b" * 30_000 + b'"]'
    body = read(data)
    first, second = body.strings
    places = [body.outline.index(marker.encode()) for marker in (first, second)]
    message = f"x (byte 1) {second} (byte {places[1]}) (byte {len(body.outline) - 1})"
    assert body.in_words_of_sender(message, 5) == f"x (byte 1) bbbbb (byte 20006) (byte {len(data) - 1})"
