"""Finds the ids that a regular expression allows next, by trying every token. Tests compare masks with these ids."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import regex
import torch
from transformers import AutoTokenizer

from stages.token_bytes import token_bytes


class RegexMasks:
    """The ids that may follow a text so that a regular expression can still match it as a whole.

    Args:
        checkpoint: The checkpoint with the tokenizer.
        pattern: The regular expression; it must match only ASCII characters.
        size: Number of ids.
        end: Id of the token that ends a text.
    """

    def __init__(self, checkpoint: Path, pattern: str, size: int, end: int) -> None:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        added = tokenizer.added_tokens_decoder
        self._pieces = {
            id_: piece.decode("ascii")
            for id_, piece in enumerate(token_bytes(tokenizer))
            if piece and id_ not in added and piece.isascii()
        }
        self._pattern = regex.compile(pattern)
        self._size = size
        self._end = end
        self.allowed = cache(self._allowed)

    def _allowed(self, text: tuple[int, ...]) -> torch.Tensor:
        """The ids that may follow, bool [size]."""
        written = "".join(self._pieces[id_] for id_ in text)
        mask = torch.zeros(self._size, dtype=torch.bool)
        for id_, piece in self._pieces.items():
            mask[id_] = self._pattern.fullmatch(written + piece, partial=True) is not None
        mask[self._end] = self._pattern.fullmatch(written) is not None
        return mask
