"""The score of a replica weighs the cached part of a prompt against the load of the replica."""

from __future__ import annotations

import random

import pytest

from omni_pipeline.supervision.replica_choice import OPEN_TOKENS, Candidate, Choice, Reason, choose

OVERLOAD = 1.5


def test_a_single_replica_is_no_choice() -> None:
    assert choose([Candidate(3, 10_000, 20)], 100, OVERLOAD, -1) == Choice(3, 20, Reason.ONLY)


def test_the_replica_with_the_prefix_is_chosen() -> None:
    assert choose([Candidate(0, 0), Candidate(1, 0, 80)], 100, OVERLOAD, 1) == Choice(1, 80, Reason.PREFIX)


def test_the_longer_prefix_is_chosen() -> None:
    assert choose([Candidate(0, 0, 90), Candidate(1, 0, 80)], 100, OVERLOAD, 0) == Choice(0, 90, Reason.PREFIX)


def test_a_long_prefix_is_worth_some_waiting_and_a_short_one_is_not() -> None:
    busy = Candidate(0, OPEN_TOKENS, 1000)
    assert choose([busy, Candidate(1, 0)], 1200, OVERLOAD, -1).replica == 0
    assert choose([Candidate(0, OPEN_TOKENS, 100), Candidate(1, 0)], 1200, OVERLOAD, -1).replica == 1


@pytest.mark.parametrize(("overload", "chosen"), [(1.2, 0), (1.19, 1)])
def test_the_prefix_of_an_overloaded_replica_is_ignored(overload: float, chosen: int) -> None:
    prompt = 2000 - OPEN_TOKENS
    candidates = [Candidate(0, 1500, prompt), Candidate(1, 500), Candidate(2, 500), Candidate(3, 500)]
    # The mean load is 1250 with the new request, so the load of replica 0 is 1.2 times the mean.
    assert choose(candidates, prompt, overload, -1).replica == chosen


def test_equal_replicas_take_turns() -> None:
    latest, chosen = -1, []
    for _ in range(6):
        latest = choose([Candidate(replica, 0) for replica in range(3)], 50, OVERLOAD, latest).replica
        chosen.append(latest)
    assert chosen == [0, 1, 2, 0, 1, 2]


def test_a_prefix_that_all_replicas_have_decides_nothing() -> None:
    candidates = [Candidate(0, 200, 90), Candidate(1, 100, 90)]
    assert choose(candidates, 100, 2.0, -1) == Choice(1, 90, Reason.LOAD)


def test_an_overloaded_replica_gets_a_request_only_if_it_has_the_lowest_load() -> None:
    draw = random.Random(8)
    for _ in range(5000):
        prompt = draw.randrange(0, 3000)
        loads = [draw.choice((0, draw.randrange(5000))) for _ in range(draw.randrange(2, 6))]
        candidates = [Candidate(n, load, draw.randrange(prompt + 1)) for n, load in enumerate(loads)]
        overload = draw.choice((1.0, 1.5, 2.0))
        choice = choose(candidates, prompt, overload, draw.randrange(-1, 5))
        chosen = candidates[choice.replica]
        if chosen.load > overload * (sum(loads) + prompt + OPEN_TOKENS) / len(loads):
            assert chosen.load == min(loads)
        if 0 in loads:
            # the chosen replica's load is at most the prompt's tokens, which an idle replica would have to compute
            assert chosen.load <= prompt
