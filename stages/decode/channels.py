"""Divides the growing text of an answer into content and tool calls for the client, and decides which parts are spoken.

A splitter reads text and returns `Part`s. Together, the parts are the whole text, in order and without gaps. So every
token of the text lies in one or more parts (see the module `spoken`). A part is content, reasoning, a call, or white
space around a call. A splitter returns a part as soon as it is certain which of these the part is, and not earlier.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from stages.messages import ToolCall

# White space is held back until it is certain whether a call follows. This is the maximum number of white space
# characters that are held back. The number is small, because all held characters are read again for each new token.
_LONGEST_SPACE = 64
# A malformed block may contain the opening marker of a well-formed call. So the text of the block is read again from
# the first opening marker inside the block. In one answer, this happens at most this number of times. After that, the
# text of a malformed block is read again only from the last opening marker inside the block. This limits how often text
# is read again.
_MOST_RETRIES = 32

_STRING_BORDERS = re.compile(r'\\(.)?|"', re.DOTALL)


class Voice(Enum):
    """Which tokens of a part the talker gets."""

    SPOKEN = auto()
    SILENT = auto()  # a token that touches the part is not spoken
    SPACE = auto()  # a token is not spoken if it lies completely inside the part


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the text.

    Attributes:
        length: Number of characters that the part covers.
        content: The content that the client gets now.
        reasoning: The reasoning that the client gets now, apart from the content.
        calls: The calls that the client gets now.
        voice: Which tokens of the part the talker gets.
    """

    length: int
    content: str = ""
    calls: Sequence[ToolCall] = ()
    voice: Voice = Voice.SPOKEN
    reasoning: str = ""


class Splitter(Protocol):
    """Divides one text into parts."""

    @property
    def ended(self) -> bool:
        """Whether the splitter has ended the text. After this, `feed` must not be called any more."""

    def feed(self, text: str) -> list[Part]:
        """Read the next characters of the text. Returns the parts that are certain now."""

    def finish(self) -> list[Part]:
        """End the text. Returns the remaining parts."""


class ContentOnly:
    """The splitter of a text that consists only of content."""

    ended = False

    def feed(self, text: str) -> list[Part]:
        return [Part(len(text), text)] if text else []

    def finish(self) -> list[Part]:
        return []


class _State(Enum):
    CONTENT = auto()
    OPENED = auto()  # `_held` begins with an opening marker; the first character of an object has not arrived
    BLOCK = auto()  # inside a block that begins like a call


class CallSplitter:
    """The splitter of a text with calls.

    A *block* begins with an opening marker and a JSON object. It ends with the next closing marker outside the strings
    of the object. Without such a marker, the block extends to the end of the answer. The client gets the calls of a
    block instead of its text. If a block is malformed, the client gets the text of the block as content. A block is
    never spoken. White space around a call is not content, because the chat template writes white space between content
    and calls.

    Args:
        opening, closing: The markers around a block.
        read: Returns the calls of a block. Its argument is the text of the block with the markers. The result is empty
            if the block is malformed.
        parallel: Whether the text may contain more than one call. If not, the text ends after the first call.
    """

    # In a block, one of these characters follows the marker and white space. If another character follows, the marker
    # becomes content at once. So if a text only mentions the marker, the rest of the text is not held back.
    _BEGINNINGS = "{["

    def __init__(
        self, opening: str, closing: str, read: Callable[[str], Sequence[ToolCall]], *, parallel: bool = True
    ) -> None:
        self.ended = False
        self._opening = opening
        self._closing = closing
        self._read = read
        self._parallel = parallel
        self._state = _State.CONTENT
        self._held = ""  # the latest characters, which no part covers yet
        self._block: list[str] = []  # the characters of the block before `_held`
        self._strings = _JsonStrings()  # reads `_block`
        self._retries = _MOST_RETRIES
        self._space = ""  # the white space before the block, which is content if the block is malformed
        self._has_content = False
        self._after_call = False

    def feed(self, text: str) -> list[Part]:
        parts: list[Part] = []
        self._held += text
        while not self.ended and self._advance(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        parts: list[Part] = []
        while not self.ended and (self._held or self._block):
            if self._advance(parts):
                continue
            if self._state is _State.BLOCK:
                self._close(parts, len(self._held))
            elif self._state is _State.OPENED:
                self._refuse(parts, len(self._held))
            elif self._after_call and self._held.isspace():
                self._cover(parts, len(self._held), voice=Voice.SPACE)
            else:
                self._give(parts, len(self._held))
        return parts

    def _advance(self, parts: list[Part]) -> bool:
        """Make one step. Returns whether another step may be possible before more text arrives."""
        match self._state:
            case _State.CONTENT:
                return self._find_opening(parts)
            case _State.OPENED:
                return self._find_beginning(parts)
            case _State.BLOCK:
                return self._find_closing(parts)

    def _find_opening(self, parts: list[Part]) -> bool:
        at = self._held.find(self._opening)
        end = at if at >= 0 else len(self._held) - begun(self._held, self._opening)
        solid = len(self._held[:end].rstrip())
        if at < 0 and end - solid > _LONGEST_SPACE:
            solid = end
        if solid:
            self._give(parts, solid)
        if at < 0:
            return False
        self._space = self._held[: end - solid]
        self._cover(parts, len(self._space), voice=Voice.SPACE)
        self._state = _State.OPENED
        return True

    def _find_beginning(self, parts: list[Part]) -> bool:
        rest = self._held[len(self._opening) :].lstrip()
        if not rest and len(self._held) - len(self._opening) <= _LONGEST_SPACE:
            return False
        if rest and rest[0] in self._BEGINNINGS:
            self._state = _State.BLOCK
            self._strings = _JsonStrings()
        else:
            self._refuse(parts, len(self._opening))
        return True

    def _find_closing(self, parts: list[Part]) -> bool:
        read = 0
        while (at := self._held.find(self._closing, read)) >= 0:
            self._strings.read(self._held[read:at])
            if not self._strings.inside:
                self._close(parts, at + len(self._closing))
                return True
            self._strings.read(self._held[at])
            read = at + 1
        searched = max(read, len(self._held) - len(self._closing) + 1)
        self._strings.read(self._held[read:searched])
        self._block.append(self._held[:searched])
        self._held = self._held[searched:]
        return False

    def _close(self, parts: list[Part], length: int) -> None:
        """End the block. The first `length` held characters belong to the block."""
        block = "".join(self._block) + self._held[:length]
        self._held = block + self._held[length:]
        self._block = []
        calls = self._read(block)
        if calls:
            self._cover(parts, len(block), calls=calls if self._parallel else calls[:1])
            self._state = _State.CONTENT
            self._after_call = True
            self.ended = not self._parallel
            return
        inner = block.find(self._opening, 1) if self._retries else block.rfind(self._opening, 1)
        self._refuse(parts, inner if inner > 0 else len(block))
        if inner > 0:
            self._retries = max(0, self._retries - 1)
            self._state = _State.OPENED

    def _refuse(self, parts: list[Part], length: int) -> None:
        """Turn the first held characters, which look like the beginning of a block, into content."""
        content, self._space = self._space + self._held[:length], ""
        self._cover(parts, length, content=content)
        self._state = _State.CONTENT
        self._has_content, self._after_call = True, False

    def _give(self, parts: list[Part], length: int) -> None:
        """Turn the first held characters into content. If the text began with a call, leave out the white space between
        this call and the first content.
        """
        if self._after_call and not self._has_content:
            space = length - len(self._held[:length].lstrip())
            self._cover(parts, space, voice=Voice.SPACE)
            length -= space
        if length:
            self._cover(parts, length, content=self._held[:length], voice=Voice.SPOKEN)
            self._has_content, self._after_call = True, False

    def _cover(
        self,
        parts: list[Part],
        length: int,
        *,
        content: str = "",
        calls: Sequence[ToolCall] = (),
        voice: Voice = Voice.SILENT,
    ) -> None:
        """Append one part for the first `length` characters of the text that is held back."""
        self._held = self._held[length:]
        if length:
            parts.append(Part(length, content, calls, voice))


class _JsonStrings:
    """Reads JSON piece by piece, and tracks whether the current position is inside a string.

    Attributes:
        inside: Whether the next character is in a string.
    """

    def __init__(self) -> None:
        self.inside = False
        self._escaped = False  # whether the next character is the second one of an escape

    def read(self, text: str) -> None:
        start = int(self._escaped and bool(text))
        self._escaped = self._escaped and not text
        for border in _STRING_BORDERS.finditer(text, start):
            if border[0] == '"':
                self.inside = not self.inside
            else:
                self._escaped = border[1] is None


def begun(text: str, marker: str) -> int:
    """Number of characters at the end of `text` that equal the beginning of `marker`. If several numbers are possible,
    the largest counts. A complete marker does not count. The result is 0 if no number is possible.
    """
    return next((size for size in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:size])), 0)
