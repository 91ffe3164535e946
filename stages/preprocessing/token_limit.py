"""Refuses prompts that are too long for the model, as the OpenAI API does."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy
from msgspec import Struct
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from stages.context_length import context_length_exceeded
from stages.messages import Text, Tool, Turn

# Maximum factor, rounded up, by which the normalisation NFC shortens a text in UTF-8. For example, U+1FBE, U+0308 and
# U+0301 (seven bytes) become one letter of two bytes.
NFC_SHRINKS = 4


class TokenLimit(Struct, frozen=True):
    """The maximum number of tokens of a prompt, media included."""

    tokens: int

    def check(self, tokens: int) -> None:
        """Raises OmniError 400 ``context_length_exceeded`` if `tokens` is above the limit."""
        if tokens > self.tokens:
            raise context_length_exceeded(self.tokens, f"{tokens} tokens")


class TextLimit(Struct, frozen=True):
    """A limit on the size of a text. A text beyond this limit certainly has more tokens than a `TokenLimit` allows, so
    it can be refused without being tokenised.

    Attributes:
        limit: The limit on tokens.
        token_bytes: Maximum number of bytes of text that one token represents; None if no maximum is known for this
            tokenizer.
        shrinks: Factor by which normalisation may shorten a text that is not ASCII.
        shares: For each byte value, 1 divided by the number of bytes in the longest token that contains the value. So a
            byte of this value is at least this share of its token. Empty if no maximum is known.
    """

    limit: TokenLimit
    token_bytes: int | None
    shrinks: int = 1
    shares: tuple[float, ...] = ()

    @classmethod
    def of(cls, limit: TokenLimit, tokenizer: Tokenizer) -> TextLimit:
        """The limit for a tokenizer. A bound is known for byte-level tokenizers, whose tokens are runs of bytes."""
        parts = json.loads(tokenizer.to_str())
        split = parts["pre_tokenizer"] or {}
        steps = [step["type"] for step in split.get("pretokenizers", [split]) if step]
        normalizer = (parts["normalizer"] or {}).get("type")
        added = parts["added_tokens"]
        strips = any(token["lstrip"] or token["rstrip"] for token in added)
        if "ByteLevel" not in steps or normalizer not in (None, "NFC") or strips:
            return cls(limit, None)
        # The vocabulary writes each byte of a token as one character. But it contains added tokens as plain text.
        plain = {token["content"]: token["content"].encode() for token in added}
        values = _byte_values()
        tokens = [
            plain.get(token) or bytes(values[one] for one in token)
            for token in tokenizer.get_vocab()
            if token in plain or values.keys() >= set(token)  # other tokens have bytes that no text contains
        ]
        longest = [1] * 256
        for token in tokens:
            for value in set(token):
                longest[value] = max(longest[value], len(token))
        return cls(limit, max(longest), NFC_SHRINKS if normalizer else 1, tuple(1 / length for length in longest))

    def check(self, turns: Sequence[Turn], tools: Sequence[Tool] = ()) -> int:
        """Number of bytes of a conversation's text and of its tools, in UTF-8.

        Raises:
            OmniError: 400 ``context_length_exceeded`` if this number of bytes certainly makes too many tokens.
        """
        texts = [turn.role for turn in turns]
        texts += [part.text for turn in turns for part in turn.content if isinstance(part, Text)]
        texts += [text for turn in turns for call in turn.calls for text in (call.name, call.arguments)]
        texts += [turn.reasoning for turn in turns if turn.reasoning]
        texts += [tool.definition for tool in tools]
        if self.token_bytes is None:
            return _size(texts)
        # A cheap check comes first. If the number of characters is too large, the number of bytes is too large as well,
        # because each character has at least one byte.
        self._check(sum(map(len, texts)), self.shrinks)
        size = _size(texts)
        self._check(size, 1 if all(map(str.isascii, texts)) else self.shrinks)
        return size

    def check_least(self, tokens: int, text: bytes) -> None:
        """Raises OmniError 400 ``context_length_exceeded`` if `tokens` and the tokens of `text` together are certainly
        too many.

        The shares of the bytes of one token add up to at most 1. So the sum of the shares of all bytes in a text is a
        lower bound on its number of tokens.

        Args:
            text: The text in UTF-8, normalised.
        """
        counts = numpy.bincount(numpy.frombuffer(text, numpy.uint8), minlength=256)
        least = tokens + math.ceil(float(counts @ numpy.asarray(self.shares)) - 1e-6)
        if least > self.limit.tokens:
            raise context_length_exceeded(self.limit.tokens, f"at least {least} tokens")

    def _check(self, size: int, shrinks: int) -> None:
        assert self.token_bytes is not None
        least = -(-size // (self.token_bytes * shrinks))
        if least > self.limit.tokens:
            raise context_length_exceeded(
                self.limit.tokens, f"at least {least} tokens, because your messages have at least {size} bytes"
            )


def _byte_values() -> dict[str, int]:
    """Maps each character of a byte-level vocabulary to the byte that it represents. Bytes that never occur in UTF-8
    are left out.
    """
    to_characters = ByteLevel(add_prefix_space=False, use_regex=False)
    values: dict[str, int] = {}
    for code in (*range(0x800), *range(0x800, 0xD800, 0x100), *range(0xE000, 0x110000, 0x1000)):
        ((characters, _),) = to_characters.pre_tokenize_str(chr(code))
        values.update(zip(characters, chr(code).encode(), strict=True))
    return values


def _size(texts: Sequence[str]) -> int:
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
