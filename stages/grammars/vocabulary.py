"""Prepares a checkpoint's vocabulary for grammars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from stages.token_bytes import token_bytes


class Vocabulary:
    """The tokens that can make up the text of a grammar.

    Two kinds of ids never represent text of the grammar: the ids of added tokens, which are not part of byte-pair
    encoding, and ids without a token.

    Args:
        pieces: The bytes of each token by id; None for an id without a token.
        added: The ids of the added tokens.
        named: The ids of those added tokens that a structural tag can name, such as ``<tool_call>``. Control tokens are
            not among them.
        size: Number of ids; ids beyond the last token are padding.
        end: Id of the token that ends a text.

    Attributes:
        tokenizer: The vocabulary for llguidance.
        named, size, end: The arguments with these names.
    """

    def __init__(
        self,
        pieces: list[bytes | None],
        *,
        added: Iterable[int],
        named: Mapping[str, int],
        size: int,
        end: int,
    ) -> None:
        self.named = dict(named)
        self.size = size
        self.end = end
        tokens = [piece or b"" for piece in pieces]
        source = _Source(tokens + [b""] * (size - len(tokens)), sorted(added), end)
        self.tokenizer = LLTokenizer(TokenizerWrapper(source), n_vocab=size, eos_token=[end])

    @classmethod
    def of(cls, tokenizer: Any, size: int, end: int) -> Vocabulary:
        """The vocabulary of a Hugging Face tokenizer for byte-level BPE."""
        added = tokenizer.added_tokens_decoder
        return cls(
            token_bytes(tokenizer),
            added=added,
            named={token.content: index for index, token in added.items() if not token.special},
            size=size,
            end=end,
        )


class _Source:
    """The vocabulary in the form that llguidance reads. The attributes have the names that llguidance expects."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int], end: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = end
        self._bytes = {token[0]: id_ for id_, token in enumerate(tokens) if len(token) == 1}

    def __call__(self, text: bytes) -> list[int]:
        """Returns one token for each byte. These are not the tokens that the tokenizer would use, but they suffice,
        because our grammars never prescribe the tokens of a text (see `lark.OPTIONS`).
        """
        return [self._bytes[byte] for byte in text]
