"""The demo model's tokenizer: Qwen's tokenizer, cut to its most common tokens and the words of the demo world."""

from __future__ import annotations

import functools
from pathlib import Path

from tiny_checkpoint.tokenizer import Vocabulary, cut_vocabulary, write_tokenizer
from transformers import Qwen2Tokenizer

from demo_model.world.grammar import all_words

RANKS = 900
"""The number of Qwen's first byte-pair ranks that are kept. These tokens are all single bytes and common pieces of
words. Because all single bytes are tokens, any text can be tokenised.
"""


@functools.cache
def vocabulary() -> Vocabulary:
    """The demo model's vocabulary, in which nearly every word of the demo model's world is one token."""
    return cut_vocabulary(RANKS, all_words())


def write(directory: Path) -> None:
    """Write the tokenizer's files into `directory`."""
    write_tokenizer(vocabulary(), directory)


@functools.cache
def tokenizer(directory: Path) -> Qwen2Tokenizer:
    """Load the tokenizer from its files in `directory`. If `directory` has no such files, write them first."""
    if not (directory / "tokenizer_config.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        write(directory)
    return Qwen2Tokenizer.from_pretrained(directory)
