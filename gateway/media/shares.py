"""Shares a fixed number of places among clients, so that no client can take them all."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Shares:
    """A number of places. A client may take one more place only while it has fewer places than are free.

    A single client gets half of the places. If a client keeps its places for a long time, the next client still gets
    half of the free places. So with 64 places, at least seven clients are needed to take all places. When places are
    given back, the shares of the clients become more equal. Clients that wait take turns.

    Args:
        most: The number of places.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._taken: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # in the order in which clients get their next turn

    async def take(self, client: str) -> None:
        """Wait for a place and take it. Cancelling the call takes no place."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(client, turn)
            else:
                self.give(client)  # the turn came just before the cancellation
            raise

    def give(self, client: str) -> None:
        """Give back a place that `client` has taken."""
        self._free += 1
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]
        self._hand_out()

    @asynccontextmanager
    async def one(self, client: str) -> AsyncIterator[None]:
        """Hold a place while the block runs."""
        await self.take(client)
        try:
            yield
        finally:
            self.give(client)

    def _hand_out(self) -> None:
        """Give free places to waiting clients. Each client gets one place in turn, until no client may take another
        place.
        """
        handed_out = True
        while handed_out:
            handed_out = False
            for client in list(self._waiting):
                if self._taken[client] < self._free:
                    turns = self._waiting.pop(client)
                    turn = turns.popleft()
                    if turns:
                        self._waiting[client] = turns
                    if not turn.done():  # the call may have been cancelled a moment ago
                        self._free -= 1
                        self._taken[client] += 1
                        turn.set_result(None)
                    handed_out = True

    def _leave(self, client: str, turn: asyncio.Future[None]) -> None:
        """Remove `turn` from the waiting turns, if it is still there."""
        turns = self._waiting.get(client, deque())
        if turn in turns:
            turns.remove(turn)
        if not turns:
            self._waiting.pop(client, None)
