"""Tests blocking calls for several clients: slow calls of one client leave threads for the other clients."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from gateway.media.threads import Threads


class Slow:
    """A call that blocks until the test lets all calls continue.

    Attributes:
        running: A semaphore that each call releases once, when the call begins.
    """

    def __init__(self) -> None:
        self.released = threading.Event()
        self.running = threading.Semaphore(0)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self.running.release()
        self.released.wait(30)
        return "done"


@pytest.fixture
def slow() -> Iterator[Slow]:
    found = Slow()
    yield found
    found.released.set()


async def begun(slow: Slow, count: int) -> None:
    for _ in range(count):
        assert await asyncio.to_thread(slow.running.acquire, timeout=10)


async def test_a_call_returns_its_result_or_its_error():
    threads = Threads("test", 2)
    assert await threads.run("a", lambda: 3) == 3
    for _ in range(5):  # this number is larger than the number of threads
        with pytest.raises(ZeroDivisionError):
            await threads.run("a", lambda: 1 // 0)


async def test_a_thousand_slow_calls_of_a_client_leave_threads_to_other_clients(slow):
    threads = Threads("test", 8)
    calls = [asyncio.create_task(threads.run("slow", slow)) for _ in range(1000)]
    await begun(slow, 4)
    for client in ("b", "c", "d"):
        assert await asyncio.wait_for(threads.run(client, lambda: "quick"), 10) == "quick"
    assert slow.calls == 4
    slow.released.set()
    assert await asyncio.gather(*calls) == ["done"] * 1000


async def test_a_slow_call_that_nobody_waits_for_counts_until_it_returns(slow):
    threads = Threads("test", 8)
    for _ in range(3):
        calls = [asyncio.create_task(threads.run("slow", slow)) for _ in range(10)]
        await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert slow.calls == 4
    assert await asyncio.wait_for(threads.run("b", lambda: "quick"), 10) == "quick"
    slow.released.set()
    assert await asyncio.wait_for(threads.run("slow", lambda: "quick"), 10) == "quick"


async def test_calls_with_the_same_key_are_one_call(slow):
    threads = Threads("test", 8)
    calls = [asyncio.create_task(threads.run(client, slow, key="name")) for client in "aabbcc"]
    await begun(slow, 1)
    calls[0].cancel()  # the other callers still get the result
    slow.released.set()
    assert await asyncio.gather(*calls[1:]) == ["done"] * 5
    assert slow.calls == 1
    assert await threads.run("a", slow, key="name") == "done"
    assert slow.calls == 2


def test_the_process_ends_although_a_call_does_not_return():
    program = """
import asyncio, time
from gateway.media.threads import Threads

async def main():
    asked = asyncio.create_task(Threads("test", 2).run("a", lambda: time.sleep(600)))
    await asyncio.sleep(0)

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
