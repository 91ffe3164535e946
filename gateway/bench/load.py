"""Sends requests as soon as a stream is free (closed loop, steady loop), or at random times (open loop)."""

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
    """Send `items` in order, `concurrency` at a time. When an answer is complete, the next item is sent."""
    waiting = iter(items)

    async def stream() -> None:
        for item in waiting:  # all streams take items from this one iterator
            await ask(item)

    async with asyncio.TaskGroup() as streams:
        for _ in range(concurrency):
            streams.create_task(stream())


class SteadyWindow(Struct, Generic[Item]):
    """The part of a steady loop in which all streams were busy.

    Attributes:
        items: The measured items: all that were sent, and are answered, while every stream was busy.
        began, ended: When the last stream began, and when the last measured item was answered, by the clock
            `time.perf_counter`.
    """

    items: list[Item]
    began: float = 0.0
    ended: float = 0.0


async def steady_loop(items: Iterator[Item], starts: Sequence[float], count: int, ask: Ask[Item]) -> SteadyWindow[Item]:
    """Keep one item in flight for each of `starts`, until `count` items are measured.

    A stream begins at each of `starts`, in seconds. The items that are sent before the last stream has begun are not
    measured; the next `count` items are. Free streams send further items until all measured items are answered, so that
    no measured item meets a lighter load than the others. The function returns when everything is answered.

    Args:
        items: An endless iterator.
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
    """When each stream of a steady loop begins: the first at 0, the others at random times within `seconds`."""
    rng = random.Random(f"starts {seed}")
    return [0.0, *sorted(rng.uniform(0.0, seconds) for _ in range(streams - 1))]


async def open_loop(items: Sequence[Item], rate: float, seed: int, ask: Ask[Item]) -> None:
    """Send each of `items` at its time in a Poisson process, even if earlier items are still being answered."""
    clock = asyncio.get_running_loop().time
    began = clock()
    async with asyncio.TaskGroup() as requests:
        for item, at in zip(items, poisson_times(len(items), rate, seed), strict=True):
            await asyncio.sleep(began + at - clock())
            requests.create_task(ask(item))


def poisson_times(count: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start at which `count` requests are sent: `rate` per second on average, the first at 0."""
    rng = random.Random(f"arrivals {seed}")
    return [0.0, *itertools.accumulate(rng.expovariate(rate) for _ in range(count - 1))][:count]
