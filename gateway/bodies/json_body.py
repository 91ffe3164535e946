"""Stores a received JSON body in two parts: the long strings, and an *outline*, which is the body without the long
strings.

Decoding is one call, and no stream makes progress until this call returns. So the decoder should get only a limited
number of bytes. Most of a large body is base64 of media, and base64 needs no JSON decoder. So each long string has its
own buffer, and the outline contains a short marker instead of the string. A string that is never read is never decoded
or copied.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import msgspec
from msgspec import Struct

# A body with fewer bytes is decoded and checked in one call, which takes about a millisecond.
_LARGE = 1 << 14
# Number of bytes that are decoded before another thread may run.
_SLICE = 1 << 20
# The maximum length of an escape in a JSON string, such as `\u00e9`.
_LONGEST_ESCAPE = 6
_POSITION = re.compile(r"\(byte (\d+)\)")
# Escaped backslashes, complete surrogate pairs, and single surrogates that are not part of a pair (group 1).
_HALVES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


class LongString(Struct):
    """A string of the body as it was sent, with its escapes and without its quotes.

    Attributes:
        offset: Position of the marker in the outline.
        content: The bytes of the string.
        escaped: Whether `content` has a backslash.
    """

    offset: int
    content: bytearray
    escaped: bool

    def characters(self, begin: int, most: int = _SLICE) -> tuple[bytes | bytearray, int]:
        """Unescape a piece of a string that is base64 or a data URL. Returns the characters of the piece, and the
        position in `content` at which the next piece begins.

        Most clients send base64 without escapes. Some clients write ``\\/`` or ``\\u002b``, and line breaks are
        ``\\n``.

        Args:
            begin: Position in `content`.
            most: Maximum number of bytes of `content` to read. `most` must be larger than the longest escape.

        Raises:
            ValueError: if an escape is wrong.
        """
        end = min(begin + most, len(self.content))
        if not self.escaped:
            return self.content[begin:end], end
        if end < len(self.content):
            # Make the piece end between two escapes. Neither base64 nor the head of a data URL contains a backslash, so
            # every backslash begins an escape.
            backslash = self.content.rfind(b"\\", end - _LONGEST_ESCAPE + 1, end)
            end = end if backslash < 0 else backslash
        return msgspec.json.decode(b'"' + self.content[begin:end] + b'"', type=str).encode(), end

    def skipped(self, begin: int, end: int) -> int:
        """Upper bound on the number of bytes in ``content[begin:end]`` that are white space or padding, or belong to
        escapes.
        """
        empty = sum(self.content.count(character, begin, end) for character in b" \t\r\n=")
        return empty + (self.content.count(b"\\", begin, end) * _LONGEST_ESCAPE if self.escaped else 0)


class JsonBody:
    """A JSON body.

    Attributes:
        outline: The body with a marker in place of each long string.
        strings: The long strings, keyed by their markers, in the order of the body. The client cannot guess a marker.
    """

    def __init__(self, outline: bytes, strings: dict[str, LongString]) -> None:
        self.outline = outline
        self.strings = strings

    @property
    def large(self) -> bool:
        """Whether the body should be decoded and checked in a thread, because this work takes long."""
        return bool(self.strings) or len(self.outline) > _LARGE

    def flaw(self, error: Exception, longest: int) -> str:
        """A sentence for the client that explains why the outline of a body cannot be decoded.

        Args:
            error: The decoder's error.
            longest: Number of bytes of a long string that the sentence may quote.
        """
        message = str(error)
        if isinstance(error, UnicodeDecodeError):  # the position in this message counts from the beginning of a string
            try:
                self.outline.decode()
            except UnicodeDecodeError as whole:
                message = f"it is not UTF-8 (byte {whole.start})"
        # If a string ends with half a surrogate pair, the decoder reports that the body is truncated.
        if "truncated" in message or "surrogate" in message:
            half = next((found for found in _HALVES.finditer(self.outline) if found[1]), None)
            if half is not None:
                place = self._position(half.start())
                return (
                    f"The body has half of a surrogate pair: {half[1].decode()} without the other half (byte {place})."
                )
        return f"The body is not valid JSON: {self.in_words_of_sender(message, longest)}."

    def restore(self, markers: Collection[str]) -> None:
        """Put the long strings with these markers back into the outline."""
        outline = bytearray()
        kept: dict[str, LongString] = {}
        done = 0
        for marker, string in self.strings.items():
            outline += self.outline[done : string.offset]
            done = string.offset + len(marker)
            if marker in markers:
                outline += string.content
            else:
                kept[marker] = LongString(len(outline), string.content, string.escaped)
                outline += marker.encode()
        outline += self.outline[done:]
        self.outline = bytes(outline)
        self.strings = kept

    def in_words_of_sender(self, message: str, longest: int) -> str:
        """Turns the decoder's message about the outline into a message about the body. In the result, every position is
        a position in the body. Instead of each marker, the result contains the beginning of the marker's long string.

        Args:
            longest: Number of bytes of a long string that the message may quote.
        """
        message = _POSITION.sub(lambda found: f"(byte {self._position(int(found[1]))})", message)
        for marker in self._named_in(message):
            start = bytes(self.strings[marker].content[:longest])
            message = message.replace(marker, start.decode("utf-8", "replace"))
        return message

    def _named_in(self, message: str) -> Iterator[str]:
        return (marker for marker in self.strings if marker in message)

    def _position(self, outline_position: int) -> int:
        """The position in the body that corresponds to a position in the outline."""
        position = outline_position
        for marker, string in self.strings.items():
            if string.offset >= outline_position:
                break
            position += len(string.content) - len(marker)
        return position
