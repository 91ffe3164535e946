"""Counts, for each replica with a prefix cache, the prompts that wait there and the prompts that its cache probably
contains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from msgspec import Struct

from omni_pipeline.contract.prompt_chain import PromptChain
from omni_pipeline.supervision.prefix_record import PrefixRecord

UNKNOWN_CACHE_TOKENS = 65_536
"""Assumed size of a prefix cache in tokens until the replica has reported the real size."""


class _OpenPrompt(Struct):
    """The prompt of an open request at one replica. All numbers are estimated tokens.

    Attributes:
        tokens: Tokens of the whole prompt.
        cached: Tokens at its beginning that the replica's cache probably contained when the request was bound.
        waiting: Tokens that the replica still has to compute.
    """

    group: str
    replica: int
    tokens: int
    cached: int
    waiting: int


class CacheUse(Struct):
    """The tokens of answered prompts that were expected and found in the prefix caches of a group.

    Attributes:
        expected: Tokens that were expected in the cache of the chosen replica.
        found: Tokens that were in the cache.
    """

    expected: int = 0
    found: int = 0


class PromptLoads:
    """The prompts at all replicas with a prefix cache.

    Args:
        groups: Names of the groups whose replicas have a prefix cache.
        cache_tokens: Returns the size of the prefix cache of a group's replica in tokens; None if it is not known yet.
    """

    def __init__(self, groups: Collection[str], cache_tokens: Callable[[str, int], int | None]) -> None:
        self.groups = frozenset(groups)
        self.uses = {group: CacheUse() for group in sorted(groups)}
        self._cache_tokens = cache_tokens
        self._records: dict[tuple[str, int], PrefixRecord] = {}
        self._waiting: Counter[tuple[str, int]] = Counter()
        self._open: dict[str, list[_OpenPrompt]] = {}
        # Tokens of all answered prompts, as estimated and as counted by the model. Their ratio corrects the estimates.
        self._estimated = self._counted = 0

    def waiting(self, group: str, replica: int) -> int:
        """Estimated prompt tokens that a replica still has to compute."""
        return self._waiting[group, replica]

    def cached(self, group: str, replica: int, chain: PromptChain) -> int:
        """Estimated tokens at the beginning of a prompt that a replica probably has in its cache."""
        record = self._records.get((group, replica))
        return record.cached(chain) if record is not None else 0

    def add(self, request_id: str, group: str, replica: int, chain: PromptChain) -> None:
        """Note that a replica will compute the prompt of a request."""
        if not chain.blocks:
            return
        tokens, cached = chain.tokens, self.cached(group, replica, chain)
        prompt = _OpenPrompt(group, replica, tokens, cached, waiting=tokens - cached)
        self._open.setdefault(request_id, []).append(prompt)
        self._waiting[group, replica] += prompt.waiting
        size = self._cache_tokens(group, replica) or UNKNOWN_CACHE_TOKENS
        limit = size * self._estimated / self._counted if self._counted else size
        self._records.setdefault((group, replica), PrefixRecord()).add(chain, limit)

    def computed(self, request_id: str) -> None:
        """Note that the answer to a request has begun, so its prompt does not wait any more. Ignores unknown ids."""
        for prompt in self._open.get(request_id, ()):
            self._waiting[prompt.group, prompt.replica] -= prompt.waiting
            prompt.waiting = 0

    def count(self, request_id: str, prompt_tokens: int, cached_tokens: int) -> None:
        """Note the real length of a request's prompt, and how much of it was in the cache. Only the first call for a
        request counts. Ignores unknown ids.
        """
        self.computed(request_id)
        for prompt in self._open.pop(request_id, ()):
            self._estimated += prompt.tokens
            self._counted += prompt_tokens
            use = self.uses[prompt.group]
            use.expected += round(prompt.cached * prompt_tokens / prompt.tokens)
            use.found += cached_tokens

    def remove(self, request_id: str) -> None:
        """Note that a request has ended. Ignores unknown ids."""
        self.computed(request_id)
        self._open.pop(request_id, None)

    def clear(self, group: str, replica: int) -> None:
        """Forget the content of a replica's cache, because the process with the cache has ended."""
        self._records.pop((group, replica), None)
