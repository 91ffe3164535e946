"""Senders take turns in the queues of stages."""

from __future__ import annotations

import random

import pytest

from stages.queue_order import TurnOrder, take_turns


def test_requests_of_one_sender_keep_their_order() -> None:
    assert take_turns([7, 7, 7], [7, 7]) == [0, 1, 2]


def test_senders_with_fewer_running_requests_come_first() -> None:
    assert take_turns([1, 1, 1, 2, 3], [1, 1, 2]) == [4, 3, 0, 1, 2]


def test_a_sender_with_few_requests_waits_only_for_its_turn() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        waiting = [rng.randrange(4) for _ in range(rng.randrange(1, 40))]
        running = [rng.randrange(4) for _ in range(rng.randrange(10))]
        order = take_turns(waiting, running)
        assert sorted(order) == [*range(len(waiting))]
        counts = {sender: running.count(sender) for sender in range(4)}
        for position, index in enumerate(order):
            sender = waiting[index]
            later = {waiting[each] for each in order[position:]}
            assert counts[sender] == min(counts[each] for each in later)
            counts[sender] += 1
        for sender in range(4):
            own = [index for index in order if waiting[index] == sender]
            assert own == sorted(own)


def test_each_sender_is_served_before_any_sender_is_served_twice() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        turns, waiting = TurnOrder(), [rng.randrange(6) for _ in range(rng.randrange(1, 60))]
        since: dict[int, set[int]] = {sender: set() for sender in waiting}  # served since the sender's latest turn
        while waiting:
            index = turns.order(waiting)[0]
            sender = waiting.pop(index)
            turns.serve(sender)
            assert sender not in waiting[:index], "requests of one sender keep their order"
            for other in set(waiting) - {sender}:
                assert sender not in since[other], f"{sender} was served twice while {other} waited"
                since[other].add(sender)
            since[sender] = set()
            if rng.random() < 0.3:
                waiting.append(rng.choice(list(since)))


def test_a_sender_that_comes_back_at_once_waits_for_those_that_wait() -> None:
    turns = TurnOrder()
    waiting = [1, 1, 2]
    served = []
    for _ in range(6):
        sender = waiting.pop(turns.order(waiting)[0])
        turns.serve(sender)
        served.append(sender)
        waiting.append(2)
    assert served == [1, 2, 1, 2, 2, 2]


def test_senders_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.queue_order._SENDERS", 3)
    turns = TurnOrder()
    for sender in range(10):
        turns.serve(sender)
    assert turns.order([9, 8, 7, 0]) == [3, 2, 1, 0]
    assert len(turns._served) == 3
