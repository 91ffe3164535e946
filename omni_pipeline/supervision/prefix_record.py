"""Records which beginnings of prompts the prefix cache of one replica probably contains."""

from __future__ import annotations

from collections import OrderedDict

from omni_pipeline.contract.prompt_chain import PromptChain


class PrefixRecord:
    """The blocks of the prompts that a replica has received. The blocks that were used least recently are dropped
    first, as in the prefix cache itself.

    Attributes:
        tokens: Number of tokens of all blocks in the record.
    """

    def __init__(self) -> None:
        self._blocks: OrderedDict[bytes, int] = OrderedDict()  # tokens of each block by its key, least recent first
        self.tokens = 0

    def cached(self, chain: PromptChain) -> int:
        """Number of tokens at the beginning of a prompt that the cache probably contains."""
        found = 0
        for block in chain.blocks:
            if block.key not in self._blocks:
                break
            found += block.tokens
        return found

    def add(self, chain: PromptChain, limit: float) -> None:
        """Note that the replica computes a prompt.

        Args:
            limit: Size of the prefix cache in tokens. The record keeps at most this number of tokens.
        """
        # A block is useless without the blocks before it. So the first block counts as the most recently used block.
        for block in reversed(chain.blocks):
            self.tokens += block.tokens - self._blocks.pop(block.key, 0)
            self._blocks[block.key] = block.tokens
        while self.tokens > limit:
            _, tokens = self._blocks.popitem(last=False)
            self.tokens -= tokens
