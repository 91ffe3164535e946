"""Runs blocking calls on behalf of clients in threads. Clients share the threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, TypeVar

from gateway.media.shares import Shares

Result = TypeVar("Result")


class Threads:
    """Threads for calls that may block for a long time, such as the look-up of a host name when the name server does
    not answer.

    A thread cannot be stopped from outside. So a call counts towards the client's share until the call returns, even if
    nobody waits for the result any more. `Shares` keeps some threads free for other clients. All threads are daemon
    threads, so the process can end while some of them still run.

    Args:
        name: The name of the threads, for debuggers.
        most: Largest number of threads.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._shares = Shares(most)
        self._running: dict[Hashable, asyncio.Future[Any]] = {}

    async def run(self, client: str, function: Callable[[], Result], key: Hashable = None) -> Result:
        """Call `function` in a thread, as soon as `client` may use a thread. Returns the result of `function`.

        Args:
            client: Client on whose behalf the call is made.
            function: The blocking call. Cancelling this method does not stop a `function` that already runs.
            key: Calls with the same key have the same result, so clients share a call that is already running. None
                means that the call is not shared.
        """
        running = self._running.get(key)
        if running is None:
            await self._shares.take(client)
            running = self._running.get(key)  # another client's call may have started in the meantime
            if running is None:
                running = self._start(client, function, key)
            else:
                self._shares.give(client)
        result: Result = await asyncio.shield(running)
        return result

    def _start(self, client: str, function: Callable[[], Any], key: Hashable) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def work() -> None:
            try:
                report(function(), None)
            except Exception as error:
                report(None, error)

        def report(result: Any, error: Exception | None) -> None:
            with suppress(RuntimeError):  # if the server has stopped in the meantime, the loop is closed
                loop.call_soon_threadsafe(self._end, client, key, future, result, error)

        try:
            threading.Thread(target=work, name=self._name, daemon=True).start()
        except RuntimeError:  # the operating system has no more threads
            self._shares.give(client)
            raise
        if key is not None:
            self._running[key] = future
        return future

    def _end(
        self, client: str, key: Hashable, future: asyncio.Future[Any], result: Any, error: Exception | None
    ) -> None:
        self._running.pop(key, None)
        self._shares.give(client)
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
            future.exception()  # without this call, asyncio would log the error if nobody waits for the result any more
