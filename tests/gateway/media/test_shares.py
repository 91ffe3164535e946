"""Tests that places are divided among the clients, even if clients take many places or do not give places back."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from gateway.media.shares import Shares


async def takes(shares: Shares, client: str, most: int) -> int:
    """Ask for `most` places for `client`. Returns the number of places that it gets at once; the other requests for
    places stay open.
    """
    waiting = [asyncio.create_task(shares.take(client)) for _ in range(most)]
    for _ in range(3):
        await asyncio.sleep(0)
    return sum(task.done() for task in waiting)


async def test_greedy_clients_that_give_nothing_back_leave_places_to_the_next():
    shares = Shares(64)
    assert [await takes(shares, client, 100) for client in "abcdefg"] == [32, 16, 8, 1, 1, 1, 1]


async def test_greedy_clients_approach_equal_shares_as_places_are_given_back():
    shares = Shares(64)
    asked = {client: [asyncio.create_task(shares.take(client)) for _ in range(1000)] for client in "abc"}
    given = dict.fromkeys("abc", 0)

    def has(client: str) -> int:
        return sum(task.done() for task in asked[client]) - given[client]

    for _ in range(200):
        await asyncio.sleep(0)
        greediest = max("abc", key=has)
        shares.give(greediest)
        given[greediest] += 1
    await asyncio.sleep(0)
    assert {has(client) for client in "abc"} <= {15, 16, 17}


async def test_a_client_that_asks_for_little_gets_it_beside_a_greedy_one():
    shares = Shares(64)
    await takes(shares, "greedy", 100)
    assert await takes(shares, "modest", 8) == 8


async def test_a_single_place_can_be_taken():
    assert await takes(Shares(1), "a", 2) == 1


async def test_clients_that_wait_take_turns():
    shares, order = Shares(2), []

    async def use(client: str) -> None:
        async with shares.one(client):
            order.append(client)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for client in "aaaabb":
            group.create_task(use(client))
    assert "".join(order) == "ababaa"


async def test_a_place_is_given_back_however_the_block_ends():
    shares = Shares(2)
    for _ in range(5):
        with suppress(ZeroDivisionError):
            async with shares.one("a"):
                raise ZeroDivisionError
    assert await takes(shares, "a", 1) == 1


@pytest.mark.parametrize("given_back_first", [False, True])
async def test_a_call_that_is_cancelled_takes_no_place(given_back_first):
    shares = Shares(1)
    await shares.take("a")
    waiting = asyncio.create_task(shares.take("b"))
    await asyncio.sleep(0)
    if given_back_first:
        shares.give("a")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not given_back_first:
        shares.give("a")
    assert await takes(shares, "c", 1) == 1
