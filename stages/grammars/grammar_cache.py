"""Compiles grammars in a thread, and caches them, because clients send the same grammar again and again.

A thread is enough, because llguidance releases Python's lock while it compiles. But a compilation in a thread cannot be
stopped if it takes too long. So the stage `preprocessing` compiles each grammar first, in a process that can be killed.
A grammar arrives here only if this first compilation has succeeded.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from llguidance import LLMatcher

from omni_pipeline.errors import OmniError
from stages.grammars.compile_grammar import compiled
from stages.grammars.masks import Masks
from stages.grammars.matcher import Matcher
from stages.grammars.vocabulary import Vocabulary
from stages.messages import Grammar

# Number of compiled grammars that are kept. `compile_grammar.LIMITS` limits the memory of each.
KEPT = 32


class GrammarCompiler:
    """Compiles grammars, and keeps those that were used most recently.

    Args:
        vocabulary: The tokens of the text.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._masks = Masks(vocabulary.size, vocabulary.end)
        self._kept: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._orders: dict[str, tuple[Grammar, Future[LLMatcher]]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile grammars")
        self._rung = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def waits_on(self) -> int:
        """A descriptor that becomes readable when a grammar has been compiled."""
        return self._bell

    @property
    def has_news(self) -> bool:
        """Whether a compilation has ended since the latest `collect`."""
        return self._rung

    def kept(self, grammar: Grammar) -> Matcher | None:
        """A matcher that has not read any text yet. None if the grammar is not in the cache."""
        if grammar not in self._kept:
            return None
        self._kept.move_to_end(grammar)
        return self._matcher(grammar, self._kept[grammar])

    def compile(self, grammar: Grammar) -> Matcher:
        """A matcher that has not read any text yet. If the grammar is not kept, it is compiled in this call.

        Raises:
            OmniError: 400, the grammar is invalid or too large.
        """
        return self.kept(grammar) or self._keep(grammar, compiled(grammar, self._vocabulary))

    def order(self, request_id: str, grammar: Grammar) -> None:
        """Begin to compile a grammar for a request, in the thread."""
        same = next((future for other, future in self._orders.values() if other == grammar), None)
        future = same or self._thread.submit(compiled, grammar, self._vocabulary)
        self._orders[request_id] = grammar, future
        future.add_done_callback(lambda _: self._ring())

    def cancel(self, request_id: str) -> None:
        """Cancel the compilation that `order` has begun for a request. Unknown ids are ignored."""
        _, future = self._orders.pop(request_id, (None, None))
        if future is not None and not any(future is other for _, other in self._orders.values()):
            future.cancel()

    def collect(self) -> list[tuple[str, Matcher | OmniError]]:
        """The requests whose grammars have been compiled, each with a matcher or the error of its grammar."""
        self._rung = False
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        done = [(name, *order) for name, order in self._orders.items() if order[1].done()]
        results: list[tuple[str, Matcher | OmniError]] = []
        for request_id, grammar, future in done:
            del self._orders[request_id]
            error = future.exception()
            if error is None:
                results.append((request_id, self._keep(grammar, future.result())))
            elif isinstance(error, OmniError):
                results.append((request_id, error))
            else:
                raise error
        return results

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        os.close(self._bell)

    def _ring(self) -> None:
        """Wake the thread that waits on the descriptor. The compiling thread calls this method."""
        self._rung = True
        os.eventfd_write(self._bell, 1)

    def _keep(self, grammar: Grammar, matcher: LLMatcher) -> Matcher:
        self._kept[grammar] = matcher
        self._kept.move_to_end(grammar)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._matcher(grammar, matcher)

    def _matcher(self, grammar: Grammar, start: LLMatcher) -> Matcher:
        return Matcher(start, self._masks, grammar.param)
