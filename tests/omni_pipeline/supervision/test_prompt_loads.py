"""The prompts of each replica: which prompts wait, what is probably cached, and how good the predictions were."""

from __future__ import annotations

from omni_pipeline.supervision.prompt_loads import UNKNOWN_CACHE_TOKENS, CacheUse, PromptLoads
from tests.omni_pipeline.supervision.test_prefix_record import chain


def loads(cache_tokens: int | None = 1000) -> PromptLoads:
    return PromptLoads({"writers"}, lambda group, replica: cache_tokens)


def test_the_uncached_part_of_a_prompt_waits_until_the_answer_begins() -> None:
    prompts = loads()
    prompts.add("r", "writers", 0, chain("a", "b"))
    prompts.add("s", "writers", 0, chain("a", "b", "c"))
    assert (prompts.waiting("writers", 0), prompts.waiting("writers", 1)) == (30, 0)
    prompts.computed("r")
    prompts.computed("r")
    assert prompts.waiting("writers", 0) == 10
    prompts.remove("s")
    prompts.remove("r")
    assert prompts.waiting("writers", 0) == 0


def test_each_replica_has_its_own_cache() -> None:
    prompts = loads()
    prompts.add("r", "writers", 1, chain("a", "b"))
    assert [prompts.cached("writers", replica, chain("a", "b", "c")) for replica in range(2)] == [0, 20]


def test_the_cache_of_an_ended_process_is_empty() -> None:
    prompts = loads()
    prompts.add("r", "writers", 0, chain("a"))
    prompts.add("s", "writers", 1, chain("a"))
    prompts.clear("writers", 0)
    prompts.clear("writers", 5)
    assert [prompts.cached("writers", replica, chain("a")) for replica in range(2)] == [0, 10]


def test_a_record_is_as_large_as_the_cache() -> None:
    prompts = loads(25)
    for name in "abc":
        prompts.add(name, "writers", 0, chain(name))
    assert [prompts.cached("writers", 0, chain(name)) for name in "abc"] == [0, 10, 10]


def test_a_cache_of_unknown_size_has_a_record_too() -> None:
    prompts = loads(None)
    prompts.add("r", "writers", 0, chain("a", tokens=UNKNOWN_CACHE_TOKENS))
    prompts.add("s", "writers", 0, chain("b"))
    assert [prompts.cached("writers", 0, chain(name)) for name in "ab"] == [0, 10]


def test_real_numbers_of_tokens_correct_the_size_of_a_record() -> None:
    prompts = loads(100)
    prompts.add("r", "writers", 0, chain("a"))
    # a prompt of 10 estimated tokens really has 40 tokens, so the cache of 100 tokens holds 25 estimated tokens
    prompts.count("r", 40, 0)
    for name in "bc":
        prompts.add(name, "writers", 0, chain(name))
    assert [prompts.cached("writers", 0, chain(name)) for name in "abc"] == [0, 10, 10]


def test_expected_and_found_tokens_are_counted_once_for_each_request() -> None:
    prompts = loads()
    prompts.add("r", "writers", 0, chain("a", "b"))
    prompts.count("r", 50, 4)
    prompts.add("s", "writers", 0, chain("a", "b", "c", "d"))
    prompts.count("s", 80, 35)  # half of the prompt was expected in the cache
    prompts.count("s", 80, 35)
    prompts.add("aborted", "writers", 0, chain("a", "b"))
    prompts.remove("aborted")
    prompts.count("aborted", 50, 50)
    assert prompts.uses == {"writers": CacheUse(expected=40, found=39)}


def test_an_unknown_prompt_changes_nothing() -> None:
    prompts = loads()
    prompts.add("r", "writers", 0, chain())
    prompts.count("r", 50, 4)
    assert (prompts.waiting("writers", 0), prompts.uses) == (0, {"writers": CacheUse()})
