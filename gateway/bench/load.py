"""Sends requests as soon as a stream is free (closed loop, steady loop), or at random times (open loop). A *stream* is
a sequence of requests in which each request begins after the answer to the previous request.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from msgspec import Struct

Item = TypeVar("Item")
Ask: TypeAlias = Callable[[Item], Coroutine[Any, Any, None]]


async def closed_loop(items: Iterable[Item], concurrency: int, ask: Ask[Item]) -> None:
    """Send `items` in order. `concurrency` is the number of items in flight. When an answer is complete, the next item
    is sent.
    """
    waiting = iter(items)

    async def stream() -> None:
        for item in waiting:  # all streams get their items from the same iterator
            await ask(item)

    async with asyncio.TaskGroup() as streams:
        for _ in range(concurrency):
            streams.create_task(stream())


class SteadyWindow(Struct, Generic[Item]):
    """The part of a steady loop during which all streams were busy.

    Attributes:
        items: The measured items. All these items were sent while every stream was busy.
        began, ended: The time at which the last stream began, and the time at which the last measured item was
            answered. Both are from the clock `time.perf_counter`.
    """

    items: list[Item]
    began: float = 0.0
    ended: float = 0.0


async def steady_loop(items: Iterator[Item], starts: Sequence[float], count: int, ask: Ask[Item]) -> SteadyWindow[Item]:
    """Keep one item in flight for each stream, until enough items are measured. `count` is the number of items to
    measure.

    The items that are sent before the last stream has begun are not measured. The next `count` items are measured.
    Streams continue to send items until all measured items are answered, so the load is the same for all measured
    items. The function returns when all items are answered.

    Args:
        items: An endless iterator.
        starts: For each stream, the time at which the stream begins, in seconds after the call.
    """
    window: SteadyWindow[Item] = SteadyWindow([])
    begun = answered = 0

    async def stream(start: float) -> None:
        nonlocal begun, answered
        await asyncio.sleep(start)
        begun += 1
        window.began = time.perf_counter()
        while answered < count:
            item = next(items)
            measured = begun == len(starts) and len(window.items) < count
            if measured:
                window.items.append(item)
            await ask(item)
            if measured:
                answered += 1
                window.ended = time.perf_counter()

    async with asyncio.TaskGroup() as streams:
        for start in starts:
            streams.create_task(stream(start))
    return window


def spread_starts(streams: int, seconds: float, seed: int | str) -> list[float]:
    """The times at which the streams of a steady loop begin. The first stream begins at 0, and the other streams begin
    at random times between 0 and `seconds`.
    """
    rng = random.Random(f"starts {seed}")
    return [0.0, *sorted(rng.uniform(0.0, seconds) for _ in range(streams - 1))]


async def open_loop(items: Sequence[Item], rate: float, seed: int, ask: Ask[Item]) -> None:
    """Send the items at random (Poisson) times. `rate` is the average number of items per second. Do not wait for
    answers.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    async with asyncio.TaskGroup() as requests:
        for item, at in zip(items, poisson_times(len(items), rate, seed), strict=True):
            await asyncio.sleep(began + at - clock())
            requests.create_task(ask(item))


def poisson_times(count: int, rate: float, seed: int) -> list[float]:
    """The times at which requests are sent, in seconds after the start. The first request is sent at 0. `count` is the
    number of requests, and `rate` is the average number of requests per second.
    """
    rng = random.Random(f"arrivals {seed}")
    return [0.0, *itertools.accumulate(rng.expovariate(rate) for _ in range(count - 1))][:count]
