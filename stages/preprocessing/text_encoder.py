"""Tokenises a text piece by piece. So a long text needs little memory, and tokenising stops as soon as the token limit
is exceeded.

A piece ends at a position where the tokenizer always ends a word, so the ids are the same as for the whole text. Some
texts have a long part without such a position, for example a long run of one letter. Then the piece contains the whole
part. Tokenising needs up to 300 bytes of memory for each byte of text. So before a piece is tokenised, a lower bound on
its number of tokens is computed and compared with the limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tokenizers import Tokenizer

from stages.preprocessing.token_limit import TextLimit

# Minimum number of characters in a piece.
PIECE = 64 * 1024

# How the tokenizers of Qwen models split a text into words. A word with a letter ends with its last letter.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The border between a letter and a punctuation mark or space. Normalisation does not join the characters on its two
# sides.
_BORDER = re.compile(r"(?<=[A-Za-zÀ-ÖØ-öø-ÿА-яё一-龥ぁ-ゖァ-ヺ가-힣])(?=[ \n,.;:!?，。、！？])")


class TextEncoder:
    """Turns text into ids. If the text spells out a special token, the spelling is tokenised as ordinary text.

    Args:
        tokenizer: The checkpoint's tokenizer. A copy of it is used.
        limit: The limit on text.
    """

    def __init__(self, tokenizer: Tokenizer, limit: TextLimit) -> None:
        self._encoder = Tokenizer.from_str(tokenizer.to_str())
        self._encoder.encode_special_tokens = True  # special tokens are encoded as text
        self._limit = limit
        parts = json.loads(tokenizer.to_str())
        steps = (parts["pre_tokenizer"] or {}).get("pretokenizers", [])
        splits = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
        whole = not any(_BORDER.search(token["content"]) for token in parts["added_tokens"])
        self._may_cut = splits == [_SPLIT] and whole and limit.token_bytes is not None

    def ids(self, text: str, before: int = 0) -> list[int]:
        """The ids of a text.

        Args:
            before: Number of tokens before the text.

        Raises:
            OmniError: 400 ``context_length_exceeded``. Raised only for a text that is cut into pieces; a shorter text
                is not checked here.
        """
        if len(text) <= PIECE or not self._may_cut:
            return self._encode(text)
        ids: list[int] = []
        for piece in self._pieces(text):
            self._limit.check_least(before + len(ids), self._normal(piece))
            ids += self._encode(piece)
        return ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids

    def _normal(self, piece: str) -> bytes:
        normalizer = self._encoder.normalizer
        return (piece if piece.isascii() or normalizer is None else normalizer.normalize_str(piece)).encode()

    def _pieces(self, text: str) -> Iterator[str]:
        begin = 0
        while begin < len(text):
            border = _BORDER.search(text, begin + PIECE)
            end = border.start() if border else len(text)
            yield text[begin:end]
            begin = end
