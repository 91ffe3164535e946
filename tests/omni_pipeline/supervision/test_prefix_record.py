"""A record of a prefix cache stores the beginnings of prompts, and drops the least recently used parts."""

from __future__ import annotations

import random

from omni_pipeline.contract.prompt_chain import PromptBlock, PromptChain
from omni_pipeline.supervision.prefix_record import PrefixRecord


def chain(*parts: str, tokens: int = 10) -> PromptChain:
    """A prompt with a block of `tokens` tokens for each part."""
    return PromptChain(tuple(PromptBlock("/".join(parts[: end + 1]).encode(), tokens) for end in range(len(parts))))


def test_an_unknown_prompt_is_not_in_the_cache() -> None:
    record = PrefixRecord()
    assert record.cached(chain("a")) == 0
    assert record.cached(PromptChain()) == 0


def test_the_common_beginning_is_in_the_cache() -> None:
    record = PrefixRecord()
    record.add(chain("system", "x", "y"), 1000)
    assert record.cached(chain("system", "x", "y", "z")) == 30
    assert record.cached(chain("system", "x", "q", "y")) == 20
    assert record.cached(chain("other", "x", "y")) == 0


def test_the_end_of_the_oldest_prompt_is_dropped_first() -> None:
    record = PrefixRecord()
    record.add(chain("a", "b", "c"), 50)
    record.add(chain("d", "e", "f"), 50)
    assert record.tokens == 50
    assert [record.cached(chain(*parts)) for parts in ("abc", "def")] == [20, 30]


def test_a_prompt_that_is_used_again_stays() -> None:
    record = PrefixRecord()
    for parts in ("ab", "cd", "ab", "ef"):
        record.add(chain(*parts), 40)
    assert [record.cached(chain(*parts)) for parts in ("ab", "cd", "ef")] == [20, 0, 20]


def test_of_a_prompt_larger_than_the_cache_the_beginning_stays() -> None:
    record = PrefixRecord()
    record.add(chain(*"abcdef"), 35)
    assert record.cached(chain(*"abcdef")) == 30


def test_a_block_with_another_estimate_counts_once() -> None:
    record = PrefixRecord()
    record.add(chain("a", tokens=10), 1000)
    record.add(chain("a", tokens=25), 1000)
    assert record.tokens == 25


def test_the_record_never_exceeds_its_limit() -> None:
    draw, record = random.Random(3), PrefixRecord()
    for _ in range(2000):
        parts = [str(draw.randrange(4)) for _ in range(draw.randrange(1, 12))]
        prompt = chain(*parts, tokens=draw.randrange(1, 20))
        record.add(prompt, 100)
        assert 0 <= record.tokens <= 100
        assert record.cached(prompt) <= 100
