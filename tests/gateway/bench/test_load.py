"""Tests the ways in which the bench sends requests: with a fixed number in flight (closed loop, steady loop), and at a
given rate (open loop).
"""

from __future__ import annotations

import asyncio
import itertools
import statistics

import pytest

from gateway.bench.load import closed_loop, open_loop, poisson_times, spread_starts, steady_loop


class Requests:
    """Counts requests, and answers a request when the test permits it.

    Attributes:
        sent: The items of the bench, in the order in which they were sent.
        most: Largest number of requests in flight at the same time.
    """

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.open: dict[int, asyncio.Event] = {}
        self.most = 0

    async def ask(self, item: int) -> None:
        self.sent.append(item)
        self.open[item] = asyncio.Event()
        self.most = max(self.most, len(self.open))
        await self.open[item].wait()
        del self.open[item]

    async def answer(self, *items: int) -> None:
        for item in items:
            self.open[item].set()
        await settle()


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_closed_loop_sends_the_next_request_when_one_is_answered() -> None:
    requests = Requests()
    loop = asyncio.create_task(closed_loop(range(5), 2, requests.ask))
    await settle()
    assert requests.sent == [0, 1]
    await requests.answer(1)
    assert requests.sent == [0, 1, 2]
    await requests.answer(0, 2)
    await requests.answer(3, 4)
    await loop
    assert requests.sent == [0, 1, 2, 3, 4]
    assert requests.most == 2


async def test_steady_loop_measures_only_while_all_streams_are_busy() -> None:
    requests = Requests()
    loop = asyncio.create_task(steady_loop(itertools.count(), [0.0, 0.02], 3, requests.ask))
    await settle()
    await requests.answer(0)
    assert requests.sent == [0, 1]
    while len(requests.sent) < 3:
        await settle()
    await requests.answer(1)
    await requests.answer(2)
    await requests.answer(4)  # 3 and 5 are in flight now; 5 is not measured
    await requests.answer(5)
    assert requests.sent == [0, 1, 2, 3, 4, 5, 6]
    await requests.answer(3)
    assert not loop.done()
    await requests.answer(6)
    window = await loop
    assert window.items == [2, 3, 4]
    assert window.began < window.ended
    assert requests.sent == [0, 1, 2, 3, 4, 5, 6]


def test_streams_of_a_steady_loop_begin_at_random_within_the_time() -> None:
    starts = spread_starts(200, 3.0, seed="x")
    assert starts == spread_starts(200, 3.0, seed="x") != spread_starts(200, 3.0, seed="y")
    assert starts == sorted(starts)
    assert (len(starts), starts[0]) == (200, 0.0)
    assert max(starts) <= 3.0
    assert statistics.mean(starts) == pytest.approx(1.5, rel=0.1)


def test_single_stream_begins_at_once() -> None:
    assert spread_starts(1, 3.0, seed=0) == [0.0]


async def test_open_loop_sends_on_whatever_is_unanswered() -> None:
    requests = Requests()
    loop = asyncio.create_task(open_loop(range(6), 1e6, 0, requests.ask))
    while len(requests.sent) < 6:
        await settle()
    assert requests.most == 6
    await requests.answer(*range(6))
    await loop


def test_arrivals_are_the_same_for_the_same_seed() -> None:
    assert poisson_times(50, 3.0, seed=7) == poisson_times(50, 3.0, seed=7)
    assert poisson_times(50, 3.0, seed=7) != poisson_times(50, 3.0, seed=8)


def test_more_requests_extend_the_same_schedule() -> None:
    assert poisson_times(50, 3.0, seed=7)[:20] == poisson_times(20, 3.0, seed=7)


def test_arrivals_begin_at_once_and_never_go_back() -> None:
    times = poisson_times(200, 3.0, seed=0)
    assert times[0] == 0.0
    assert times == sorted(times)
    assert len(times) == 200


@pytest.mark.parametrize("rate", [0.5, 40.0])
def test_waits_are_exponential(rate: float) -> None:
    times = poisson_times(20_000, rate, seed=0)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert statistics.mean(waits) == pytest.approx(1 / rate, rel=0.03)
    assert statistics.stdev(waits) == pytest.approx(1 / rate, rel=0.05)
