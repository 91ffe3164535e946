"""The demo model's tokenizer: Qwen's, cut down to its commonest ranks and the words of the demo model's world."""

from __future__ import annotations

import functools
from pathlib import Path

from tiny_checkpoint.tokenizer import Vocabulary, cut_vocabulary, write_tokenizer
from transformers import Qwen2Tokenizer

from demo_model.world.grammar import all_words

RANKS = 900
"""Qwen's first ranks: all single bytes, so that any text can be written, and the commonest pieces of words."""


@functools.cache
def vocabulary() -> Vocabulary:
    """Nearly every word of the world is one token of it."""
    return cut_vocabulary(RANKS, all_words())


def write(directory: Path) -> None:
    """The tokenizer's files, into `directory`."""
    write_tokenizer(vocabulary(), directory)


@functools.cache
def tokenizer(directory: Path) -> Qwen2Tokenizer:
    """The tokenizer as it reads from the files in `directory`, which are written first if they are not there."""
    if not (directory / "tokenizer_config.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        write(directory)
    return Qwen2Tokenizer.from_pretrained(directory)
