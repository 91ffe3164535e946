"""A prompt as a chain of hashes, by which the framework compares prompts without any knowledge of the model."""

from __future__ import annotations

from msgspec import Struct


class PromptBlock(Struct, frozen=True):
    """One part of a prompt.

    Attributes:
        key: Hash of this part and of all parts before it. So two prompts with an equal key are equal from their
            beginning to the end of this part.
        tokens: Estimated number of tokens of this part; at least 1.
    """

    key: bytes
    tokens: int


class PromptChain(Struct, frozen=True):
    """All parts of a prompt in order. A chain without blocks means an unknown prompt, which has no known beginning."""

    blocks: tuple[PromptBlock, ...] = ()

    @property
    def tokens(self) -> int:
        """Estimated number of tokens of the whole prompt."""
        return sum(block.tokens for block in self.blocks)


UNKNOWN_PROMPT = PromptChain()
