"""Finds the generated ids of the model's own earlier answers in a rendered conversation.

A text can be tokenised in several ways, and a model does not always generate the same ids as the tokenizer. If an
earlier answer were tokenised again, its ids could differ from the ids in the prefix cache.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from typing import Any

from msgspec import Struct

from stages.messages import Turn
from stages.token_bytes import token_bytes

Piece = tuple[str, str]
"""A text of a rendered conversation, and the special token after it."""

# If an answer ends with an incomplete character, the answer's text has this character in its place.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Answer(Struct, frozen=True):
    """An earlier answer in a rendered conversation: its text is `opening`, the text of `ids`, and `rest`.

    Attributes:
        opening: The text with which the template begins an answer.
        ids: Ids that the model has generated.
        rest: The text after the text of `ids`. For this part of the answer, the generated ids are not known, or they
            spell another text. If `ids` is empty, `rest` is the whole text after `opening`.
    """

    opening: str
    ids: list[int]
    rest: str


class GeneratedIds:
    """The ids of earlier answers.

    Args:
        tokenizer: A Hugging Face byte-level BPE tokenizer.
        special: Ids of special tokens. They are never part of an answer's text.
    """

    def __init__(self, tokenizer: Any, special: Collection[int]) -> None:
        self._bytes = token_bytes(tokenizer)
        self._special = frozenset(special)

    def places(self, pieces: Sequence[Piece], turns: Sequence[Turn]) -> dict[int, Answer]:
        """The earlier answers in a rendered conversation. The key of an answer is the index of the piece that contains
        the answer. The result is empty if no ids are known, or if the answers cannot be found.

        The last piece is the text with which the template opens the next answer. Each earlier answer is a piece that
        begins with the same text.
        """
        answers = [turn for turn in turns if turn.role == "assistant"]
        if not any(turn.ids for turn in answers) or len(pieces) < 2:
            return {}
        (_, token), (opening, _) = pieces[-2:]
        found = [
            index
            for index in range(1, len(pieces) - 1)
            if pieces[index - 1][1] == token and pieces[index][0].startswith(opening)
        ]
        if not opening or len(found) != len(answers):
            return {}
        return {
            index: Answer(opening, *self._spelled(pieces[index][0][len(opening) :], turn.ids))
            for index, turn in zip(found, answers, strict=True)
        }

    def _spelled(self, text: str, generated: Sequence[int]) -> tuple[list[int], str]:
        """Find out how many of the first ids of `generated` spell the beginning of `text`. If several numbers are
        possible, the largest counts. Returns these ids, and the rest of the text.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        spelled = ""
        count, length = 0, 0  # the first `count` ids spell the first `length` characters
        for number, id_ in enumerate(generated, 1):
            piece = self._bytes[id_] if 0 <= id_ < len(self._bytes) and id_ not in self._special else None
            if piece is None:
                break
            spelled += decoder.decode(piece)
            unfinished, _ = decoder.getstate()
            end = len(spelled) + bool(unfinished)
            if not text.startswith(spelled):
                break
            if not unfinished or (end == len(text) and text.endswith(_UNFINISHED)):
                count, length = number, end
        return list(generated[:count]), text[length:]
