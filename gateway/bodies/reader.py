"""Reads a JSON body piece by piece. A body whose structure or text is too large is refused before it is decoded.

The reader finds strings and counts brackets and commas. The reader does not check the rest of the JSON syntax. So the
counts are right only up to the first syntax error. That is enough, because the decoder stops at that error.
"""

from __future__ import annotations

import asyncio
import codecs
import itertools
import re
import secrets

from gateway.bodies.json_body import JsonBody, LongString
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError, bad_request

DEPTH = 64
"""Maximum depth of nested objects and lists. A chat request needs 7."""
LONG_STRING = 16 * 1024
"""A string of at least this number of bytes is stored separately."""
LONGEST_NUMBER = 128
"""Maximum length of a number in bytes. The time to decode an integer grows with the square of its length."""
EXTREME_NUMBERS = 100
"""Maximum number of exponents with three or more digits. Decoding a number close to the limits of a double takes 20
µs.
"""
# Number of bytes that are read before the event loop may run.
_SLICE = 32 * 1024

_INSIDE = rb'[^"\\]*(?:\\.[^"\\]*)*(?:(")|(\\)?\Z)'
# A string or, at the end of a slice, the first part of a string. Group 1 is the closing quote. Group 2 is the first
# half of an escape, if the slice ends inside an escape.
_STRING = re.compile(rb'"' + _INSIDE, re.DOTALL)
_REST_OF_STRING = re.compile(_INSIDE, re.DOTALL)
_CLOSED, _DIVIDED = 1, 2
_NUMERIC = b"0123456789.eE+-"
_LONG_NUMBER = re.compile(rb"[0-9.eE+-]{%d}" % (LONGEST_NUMBER + 1))
_EXTREME_EXPONENT = re.compile(rb"[eE][+-]?[0-9]{3}")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = [0] * 256
for _bracket in b"[{":
    _STEP[_bracket] = 1
for _bracket in b"]}":
    _STEP[_bracket] = -1


class JsonBodyReader:
    """Reads the pieces of one body.

    Args:
        limits: Limits on the values and the text of the body.

    Attributes:
        size: Number of bytes that have been read so far.
    """

    def __init__(self, limits: Limits) -> None:
        self._most_values = limits.body_values
        self._most_text = limits.text_bytes
        self.size = 0
        self._outline = bytearray()
        self._strings: dict[str, LongString] = {}
        self._nonce = secrets.token_hex(8)
        self._values = 0
        self._depth = 0
        self._extreme_numbers = 0
        self._number = b""  # the number at the end of this slice; the next slice may continue the number
        self._string_from: int | None = None  # position in the outline at which the open string begins
        self._long: LongString | None = None  # the open string, once it is long
        self._divided = False  # whether the next byte belongs to an escape

    async def receive(self, piece: bytes) -> None:
        """Read the next piece, and let the event loop run between slices. Raises OmniError as `feed` does."""
        for begin in range(0, len(piece), _SLICE):
            if begin:
                await asyncio.sleep(0)
            self.feed(piece[begin : begin + _SLICE])

    def feed(self, data: bytes) -> None:
        """Read the next bytes.

        Raises:
            OmniError: 400 ``invalid_json`` if the body is nested too deeply or has a number that is too long; 400
                ``too_many_values``; 413 ``text_too_large``.
        """
        self.size += len(data)
        done = self._continue_string(data) if self._string_from is not None else 0
        between = []
        written = done  # everything in `data` before this position is already in the outline or in a long string
        for match in _STRING.finditer(data, done):
            begin, end = match.span()
            between.append(data[done:begin])
            done = end
            if match.lastindex != _CLOSED:
                self._outline += data[written:begin]
                written = end
                self._begin_string(data[begin:end], divided=match.lastindex == _DIVIDED)
            elif end - begin - 2 >= LONG_STRING:
                self._outline += data[written : begin + 1]
                written = end - 1
                self._long = _long_string(data[begin + 1 : end - 1])
                self._keep_apart()
        between.append(data[done:])
        self._outline += data[written:]
        structure = b"".join(between)
        self._count_values(structure)
        self._check_numbers(structure)
        if len(self._outline) > self._most_text:
            raise text_too_large(self._most_text, None)

    def finish(self) -> JsonBody:
        """The complete body. Call this after the last bytes."""
        if self._long is not None:
            self._keep_apart()
        # Some editors write a byte order mark. Spaces replace the mark, so that all positions remain correct.
        if self._outline.startswith(codecs.BOM_UTF8):
            self._outline[: len(codecs.BOM_UTF8)] = b" " * len(codecs.BOM_UTF8)
        return JsonBody(bytes(self._outline), self._strings)

    # --- strings ---

    def _begin_string(self, data: bytes, *, divided: bool) -> None:
        """Add the first part of a string, with its opening quote."""
        self._string_from = len(self._outline)
        self._divided = divided
        self._outline += data
        self._notice_length()

    def _continue_string(self, data: bytes) -> int:
        """Add more bytes to the string that is not closed yet. Returns the position after these bytes."""
        start = 1 if self._divided else 0
        # for the base64 of media, these two searches are faster than the regular expression
        if b'"' not in data and b"\\" not in data:
            end, ending = len(data), None
        else:
            match = _REST_OF_STRING.match(data, start)
            assert match is not None
            end, ending = match.end(), match.lastindex
        self._divided = ending == _DIVIDED
        content = data[: end - 1] if ending == _CLOSED else data[:end]
        if self._long is None:
            self._outline += content
            self._notice_length()
        else:
            self._long.content += content
            self._long.escaped |= b"\\" in content
        if ending == _CLOSED:
            if self._long is not None:
                self._keep_apart()
            self._outline += b'"'
            self._string_from = None
        return end

    def _notice_length(self) -> None:
        """If the open string has become long, move it out of the outline."""
        assert self._string_from is not None
        begin = self._string_from + 1
        if len(self._outline) - begin >= LONG_STRING:
            self._long = _long_string(self._outline[begin:])
            del self._outline[begin:]

    def _keep_apart(self) -> None:
        """Store the long string separately, and put a marker into the outline."""
        assert self._long is not None
        marker = f"{self._nonce}:{len(self._strings)}"
        self._long.offset = len(self._outline)
        self._strings[marker] = self._long
        self._outline += marker.encode()
        self._long = None

    # --- structure ---

    def _count_values(self, structure: bytes) -> None:
        """Count the values and levels in `structure`, the bytes between the strings."""
        opened = structure.count(b"[") + structure.count(b"{")
        self._values += opened + structure.count(b",")
        if self._values > self._most_values:
            raise bad_request(
                f"The body has more than {self._most_values} list entries and object fields.", code="too_many_values"
            )
        if self._depth + opened > DEPTH:
            brackets = structure.translate(None, _NO_BRACKETS)
            if self._depth + max(itertools.accumulate(map(_STEP.__getitem__, brackets))) > DEPTH:
                raise bad_request(f"The body is nested too deeply: more than {DEPTH} levels.", code="invalid_json")
        closed = structure.count(b"]") + structure.count(b"}")
        self._depth = max(self._depth + opened - closed, 0)

    def _check_numbers(self, structure: bytes) -> None:
        """Refuse numbers that take long to decode."""
        known = len(self._number)
        structure = self._number + structure
        if _LONG_NUMBER.search(structure):
            raise bad_request(f"The body has a number with more than {LONGEST_NUMBER} digits.", code="invalid_json")
        self._extreme_numbers += sum(match.end() > known for match in _EXTREME_EXPONENT.finditer(structure))
        if self._extreme_numbers > EXTREME_NUMBERS:
            raise bad_request(
                f"The body has more than {EXTREME_NUMBERS} numbers with an exponent of three or more digits.",
                code="too_many_values",
            )
        end = structure[-LONGEST_NUMBER:]
        self._number = end[len(end.rstrip(_NUMERIC)) :]


def _long_string(content: bytes | bytearray) -> LongString:
    return LongString(0, bytearray(content), b"\\" in content)


def text_too_large(most: int, param: str | None) -> OmniError:
    """The error for a body with more than `most` bytes of text."""
    return bad_request(
        f"The body has more than {most} bytes, not counting its media.", param=param, code="text_too_large", status=413
    )
