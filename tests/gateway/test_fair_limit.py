"""No client can use up a limit, whatever it does, alone or together with any number of other clients."""

from __future__ import annotations

import random

import pytest

from gateway.fair_limit import FairLimit


def take_all(limit: FairLimit, client: str, count: int = 1) -> int:
    """Take `count` again and again, until no more fits. Returns the total amount that the client holds at the end."""
    while limit.fits(client, count):
        limit.take(client, count)
    return limit.held_by(client)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 100, 256, 4 * 1024**3])
def test_one_client_gets_at_most_half(most: int) -> None:
    limit = FairLimit(most)
    assert limit.fits("a", limit.most_of_one)
    assert not limit.fits("a", limit.most_of_one + 1)
    assert limit.most_of_one == max(1, most // 2)


def test_greedy_clients_leave_half_of_the_rest_and_then_the_last_eighth() -> None:
    limit = FairLimit(2560)
    assert [take_all(limit, client) for client in "abc"] == [1280, 640, 320]
    assert limit.free == 2560 // 8
    assert [take_all(limit, str(number)) for number in range(33)] == [10] * 32 + [0]
    assert not limit.free


@pytest.mark.parametrize("halved", [True, False])
def test_beside_greedy_clients_there_is_room_for_those_that_need_little(halved: bool) -> None:
    for seed in range(300):
        draw = random.Random(seed)
        limit = FairLimit(draw.choice([256, 1000, 100_000, 2**30]), halved=halved)
        little = limit.most // 256
        greedy = [f"greedy {number}" for number in range(draw.randint(1, 20))]
        for _ in range(300):
            client = draw.choice(greedy)
            if draw.random() < 0.2:
                limit.give(client, draw.randint(0, limit.held_by(client)))
                continue
            count = draw.choice([1, little, little + 1, limit.most // 10, limit.most])
            if limit.fits(client, count):
                limit.take(client, count)
            assert limit.held <= limit.most
            assert not halved or limit.held_by(client) <= limit.most // 2 or limit.most == 1
        for client in greedy:
            take_all(limit, client, little + 1)
            take_all(limit, client, little)
        for number in range(32 - len(greedy)):
            assert limit.fits(f"modest {number}", little), "there is room beside the greedy clients"
            limit.take(f"modest {number}", little)


def test_what_clients_have_becomes_more_equal_when_they_give_something_back() -> None:
    limit = FairLimit(1000)
    for client in "abc":
        take_all(limit, client)
    for _ in range(2000):
        greediest = max("abc", key=limit.held_by)
        limit.give(greediest)
        for client in sorted("abc", key=limit.held_by):
            if limit.fits(client):
                limit.take(client)
    held = [limit.held_by(client) for client in "abc"]
    assert max(held) - min(held) <= 2
    assert min(held) > 200


def test_without_halving_one_client_gets_all_but_the_last_eighth() -> None:
    limit = FairLimit(256, halved=False)
    assert take_all(limit, "a") == limit.most_of_one == 224
    assert [take_all(limit, str(number)) for number in range(33)] == [1] * 32 + [0]
    small = FairLimit(4, halved=False)
    assert take_all(small, "a") == 4, "a small limit has no eighth"


def test_clients_that_have_nothing_are_forgotten() -> None:
    limit = FairLimit(10)
    limit.take("a", 3)
    limit.give("a", 3)
    assert not limit._held_by
    assert limit.free == 10


def test_a_limit_that_became_smaller_lets_nobody_take_more() -> None:
    limit = FairLimit(10)
    limit.take("a", 4)
    limit.most = 3
    assert limit.free == -1
    assert not limit.fits("b")
