"""Sends requests as soon as a stream is free (closed loop), or at random times (open loop)."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

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
