"""Finds out from the parts of a text which tokens of the text are spoken."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

from stages.decode.channels import Part, Voice

Span: TypeAlias = tuple[int, int]
"""The characters of a token, as two indices in the text: the index of the token's first character, and the index of the
first character after the token. If a token is only a part of a character, its span is the whole character.
"""


class SpokenTokens:
    """Tracks which tokens of one text are spoken. A token becomes *known* when parts cover the whole text of the token.
    From then on, it is certain whether the token is spoken.

    Attributes:
        known: Number of known tokens, counted from the first token of the text.
    """

    def __init__(self) -> None:
        self.known = 0
        self._spans: deque[Span] = deque()  # the spans of the tokens after the first `known` tokens
        self._parts: deque[tuple[int, Voice]] = (
            deque()
        )  # for each part: the index of the first character after the part, and its voice
        self._covered = 0  # number of characters that have a part

    def add(self, spans: Iterable[Span], parts: Iterable[Part]) -> None:
        """Add the spans of the next tokens, and the next parts."""
        self._spans.extend(spans)
        for part in parts:
            self._covered += part.length
            if self._parts and self._parts[-1][1] is part.voice:
                self._parts.pop()
            self._parts.append((self._covered, part.voice))

    def silent(self) -> list[int]:
        """The indices of tokens that are not spoken. Only tokens that became known since the last call are listed."""
        silent = []
        while self._spans and self._spans[0][1] <= self._covered:
            if not self._is_spoken(self._spans.popleft()):
                silent.append(self.known)
            self.known += 1
        return silent

    def _is_spoken(self, span: Span) -> bool:
        start, end = span
        if start == end:  # a token without characters belongs to the token before it
            start = max(0, start - 1)
        while self._parts and self._parts[0][0] <= start:
            self._parts.popleft()
        voices = set()
        begin = start
        for part_end, voice in self._parts:
            if begin >= end:
                break
            if part_end > begin:
                voices.add(voice)
                begin = part_end
        return Voice.SILENT not in voices and (Voice.SPOKEN in voices or not voices)
