"""A token is spoken if its text is content. It is spoken as soon as it is certain that the text is content."""

from __future__ import annotations

import pytest

from stages.decode.channels import Part, Voice
from stages.decode.spoken import Span, SpokenTokens

SPOKEN, SILENT, SPACE = Voice.SPOKEN, Voice.SILENT, Voice.SPACE


def judge(spans: list[Span], parts: list[tuple[int, Voice]]) -> list[int]:
    """The indices of the silent tokens of a whole text."""
    tokens = SpokenTokens()
    tokens.add(spans, [Part(length, voice=voice) for length, voice in parts])
    silent = tokens.silent()
    assert tokens.known == len(spans)
    return silent


@pytest.mark.parametrize(
    ("spans", "parts", "silent"),
    [
        ([(0, 2), (2, 5)], [(5, SPOKEN)], []),
        ([(0, 2), (2, 5)], [(2, SPOKEN), (3, SILENT)], [1]),
        ([(0, 3), (3, 5)], [(2, SPOKEN), (3, SILENT)], [0, 1]),  # a token that touches a call is not spoken
        ([(0, 3), (3, 5)], [(2, SPOKEN), (1, SPACE), (2, SILENT)], [1]),  # "." and a line break, in one token
        ([(0, 2), (2, 3), (3, 5)], [(2, SPOKEN), (1, SPACE), (2, SILENT)], [1, 2]),
        ([(0, 2), (2, 4), (4, 6)], [(2, SILENT), (1, SPACE), (3, SPOKEN)], [0]),
        ([(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)], [(1, SPOKEN), (1, SILENT)], [3, 4]),  # tokens without characters
        ([(0, 1), (0, 1), (0, 1)], [(1, SILENT)], [0, 1, 2]),  # three tokens of one character
        ([(0, 0)], [], []),
        ([(0, 9)], [(1, SPOKEN)] * 9, []),
    ],
)
def test_the_parts_that_a_token_touches_decide(
    spans: list[Span], parts: list[tuple[int, Voice]], silent: list[int]
) -> None:
    assert judge(spans, parts) == silent


def test_a_token_is_known_when_all_its_characters_are() -> None:
    tokens = SpokenTokens()
    reports = []
    for spans, parts in [
        ([(0, 2)], [Part(1)]),
        ([], [Part(1)]),
        ([(2, 4), (4, 6)], []),
        ([], [Part(3, voice=SILENT)]),
        ([], [Part(1, voice=SILENT)]),
    ]:
        tokens.add(spans, parts)
        reports.append((tokens.silent(), tokens.known))
    assert reports == [([], 0), ([], 1), ([], 1), ([1], 2), ([2], 3)]
