"""Memory is granted to clients in turn and within the limit. No request for memory (*claim*) waits for ever, whether it
is small or large.
"""

from __future__ import annotations

import random

import pytest

from gateway.grants import OVERTAKERS, Grants, HeldClaim

# 14 bytes, an eighth of the limit, are reserved for clients that hold at most one byte. So the clients share the other
# 100 bytes.
LIMIT = 114


class Asked:
    """Makes claims for memory within one limit, and keeps each claim under a name."""

    def __init__(self, limit: int) -> None:
        self.grants = Grants(limit)
        self.claims: dict[str, HeldClaim] = {}
        self.granted: list[str] = []

    def ask(self, name: str, passing: int, lasting: int = 0, client: str = "") -> None:
        self.claims[name] = HeldClaim(passing, lasting, lambda: self.granted.append(name), client)
        self.grants.add(self.claims[name])

    def drop(self, *names: str) -> None:
        for name in names:
            self.grants.drop(self.claims.pop(name))


@pytest.fixture
def asked() -> Asked:
    return Asked(LIMIT)


def test_claims_that_fit_are_granted_at_once(asked: Asked) -> None:
    asked.ask("a", 60)
    asked.ask("b", 40)
    asked.ask("c", 1)
    assert asked.granted == ["a", "b"]
    assert (asked.grants.held, asked.grants.waiting) == (100, 1)


def test_waiting_claims_are_granted_in_order_when_others_end(asked: Asked) -> None:
    for name, size in {"a": 100, "b": 50, "c": 50, "d": 50}.items():
        asked.ask(name, size)
    asked.drop("a")
    assert asked.granted == ["a", "b", "c"]
    asked.drop("c")
    assert asked.granted == ["a", "b", "c", "d"]


def test_the_beginning_of_the_answer_releases_what_passes(asked: Asked) -> None:
    asked.ask("a", 70, 30)
    asked.ask("b", 60)
    asked.grants.begin_answer(asked.claims["a"])
    asked.grants.begin_answer(asked.claims["a"])
    assert (asked.granted, asked.grants.held) == (["a", "b"], 90)
    asked.drop("a", "b")
    assert asked.grants.held == 0


def test_claim_beyond_the_limit_is_granted_alone(asked: Asked) -> None:
    asked.ask("a", 1)
    asked.ask("huge", 1000)
    assert asked.granted == ["a"]
    asked.drop("a")
    asked.ask("b", 1)
    assert (asked.granted, asked.grants.held) == (["a", "huge"], 1000)
    asked.drop("huge")
    assert asked.granted == ["a", "huge", "b"]


def test_small_claims_may_pass_a_large_one_but_not_for_ever(asked: Asked) -> None:
    asked.ask("a", 50)
    asked.ask("large", 90)
    for number in range(3 * OVERTAKERS):
        asked.ask(f"s{number}", 10)
        if f"s{number}" in asked.granted:
            asked.drop(f"s{number}")
    assert asked.granted == ["a", *(f"s{number}" for number in range(OVERTAKERS))]
    asked.drop("a")
    assert asked.granted[-2:] == ["large", f"s{OVERTAKERS}"]


def test_withdrawn_claim_makes_way(asked: Asked) -> None:
    asked.ask("a", 50)
    asked.ask("large", 90)
    for number in range(OVERTAKERS):
        asked.ask(f"s{number}", 1)
    asked.ask("last", 1)
    assert "last" not in asked.granted
    asked.drop("large")
    assert asked.granted[-1] == "last"


def test_it_is_the_turn_of_the_client_that_holds_the_least(asked: Asked) -> None:
    for number in range(4):
        asked.ask(f"a{number}", 40, client="a")
    asked.ask("b0", 40, client="b")
    asked.ask("c0", 40, client="c")
    asked.drop("a0")
    assert asked.granted == ["a0", "a1", "b0"]
    asked.drop("a1")
    assert asked.granted == ["a0", "a1", "b0", "c0"]
    asked.drop("b0", "c0")
    assert asked.granted == ["a0", "a1", "b0", "c0", "a2", "a3"]


def test_a_claim_beyond_the_limit_delays_no_other_claim(asked: Asked) -> None:
    asked.ask("a", 50)
    asked.ask("huge", 1000)
    for number in range(3 * OVERTAKERS):
        asked.ask(f"s{number}", 50)
        asked.drop("a" if number == 0 else f"s{number - 1}")
    last = f"s{3 * OVERTAKERS - 1}"
    assert asked.granted[-1] == last
    asked.drop(last)
    assert asked.granted[-1] == "huge"


def test_clients_that_need_little_do_not_wait_for_large_claims() -> None:
    asked = Asked(2560)
    asked.ask("a0", 2240, client="a")
    for client in "abc":
        asked.ask(f"{client} large", 2000, client=client)
        asked.ask(f"{client} huge", 9000, client=client)
    little = [f"little {number}" for number in range(32)]
    for name in little:
        asked.ask(name, 10, client=name)
    assert asked.granted == ["a0", *little]
    asked.ask("no room", 10, client="x")
    asked.ask("not little", 11, client="y")
    assert asked.granted == ["a0", *little]
    asked.drop(little[0])
    assert asked.granted[-1] == "no room"


def test_a_client_can_not_divide_a_large_claim_into_little_ones() -> None:
    asked = Asked(2560)
    asked.ask("a0", 2240, client="a")
    for number in range(10):
        asked.ask(f"part {number}", 5, client="b")
    assert asked.granted == ["a0", "part 0", "part 1"]


def test_all_claims_are_granted_and_the_sum_stays_within_the_limit() -> None:
    draw = random.Random(5)
    asked = Asked(LIMIT)
    for number in range(300):
        asked.ask(str(number), draw.randint(0, 60), draw.randint(0, 60), draw.choice("abc"))
        running = [name for name in asked.granted if name in asked.claims]
        assert asked.grants.held <= LIMIT or len(running) == 1
        if running and draw.random() < 0.9:
            name = draw.choice(running)
            if draw.random() < 0.5:
                asked.grants.begin_answer(asked.claims[name])
            else:
                asked.drop(name)
    while asked.claims:
        asked.drop(next(name for name in asked.granted if name in asked.claims))
    assert sorted(asked.granted) == sorted(map(str, range(300)))
    assert asked.grants.held == 0
