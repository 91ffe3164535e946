"""Cuts a text that is read aloud into passages, at the ends of paragraphs and sentences where possible.

The talker speaks each passage as a separate utterance, because it was trained on answers of limited length only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

LONGEST = 200.0
"""Maximum size of a passage, in the units of `size_of`. It takes about a minute to speak a passage of this size."""

SLACK = 1.2
"""If the size of the remaining text is at most this factor times `LONGEST`, all of the remaining text becomes one
passage. So the last passage is never tiny.
"""

EARLIEST = 0.4
"""A passage ends at a border for which the size of the passage is at least this fraction of `LONGEST`, and at most
`LONGEST`. If several kinds of border exist in this range, the best kind is chosen. If no border exists in this range,
the passage ends at an earlier border.
"""

_CLOSING = r"""["'’”»)\]}」』）】》]*"""

# Borders between passages, the best kind first. A border is the end of a match.
_BORDERS = (
    re.compile(r"\n[ \t\r]*\n\s*"),  # between paragraphs
    re.compile(
        # ends of sentences; a full stop after an initial, or after a common abbreviation, does not end a sentence
        r"(?:[!?…]|(?<!\b[A-Z])(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bProf)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)\.)"
        rf"{_CLOSING}\s+|[。！？｡]{_CLOSING}\s*|\n\s*"
    ),
    re.compile(rf"[,;:—]{_CLOSING}\s+|[，；：、]{_CLOSING}\s*"),  # between clauses
    re.compile(r"\s+"),
)


def passages(text: str) -> Iterator[str]:
    """The passages of a text, in order, without white space around them. Passages are computed one by one, when the
    caller asks for the next. No passage is empty.
    """
    begin = 0
    while begin < len(text):
        end = _end(text, begin)
        passage = text[begin:end].strip()
        if passage:
            yield passage
        begin = end


def size_of(character: str) -> float:
    """The size of a character: the time to speak it, in units of about 0.3 s. One unit is about one token."""
    if character.isdigit():
        return 1.0
    if character.isspace():
        return 0.2
    return 0.25 if ord(character) < 0x2E80 else 0.7


def _end(text: str, begin: int) -> int:
    """The index at which the passage that begins at `begin` ends."""
    longest, earliest = begin, begin
    size = 0.0
    for index in range(begin, len(text)):
        size += size_of(text[index])
        if size <= EARLIEST * LONGEST:
            earliest = index + 1
        if size <= LONGEST:
            longest = index + 1
        elif size > SLACK * LONGEST:
            break
    else:
        return len(text)
    for start in (earliest, begin + 1):
        for kind in _BORDERS:
            end = max((match.end() for match in kind.finditer(text, begin, longest)), default=0)
            if end >= start:
                return end
    return _before_marks(text, begin, longest)


def _before_marks(text: str, begin: int, end: int) -> int:
    """The index at which to cut: `end`, or a smaller index if a cut at `end` would separate a letter from its
    accents.
    """
    cut = end
    while cut > begin + 1 and end - cut < 32 and (unicodedata.combining(text[cut]) or text[cut] in "\u200d\ufe0f"):
        cut -= 1
    return cut
