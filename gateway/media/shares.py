"""Shares a fixed number of permits among clients, so that no client can take all permits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.fair_limit import FairLimit


class Shares:
    """A number of permits. A permit is the right to do one thing, such as one download. Clients share the permits
    according to the rules of `FairLimit`. Clients that wait take turns.

    Args:
        most: The number of permits.
    """

    def __init__(self, most: int) -> None:
        self._limit = FairLimit(most)
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # in the order of the clients' next turns

    async def take(self, client: str) -> None:
        """Wait for a free permit and take it. If the call is cancelled, no permit is taken."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(client, turn)
            else:
                self.give(client)  # the client got the permit just before the cancellation
            raise

    def give(self, client: str) -> None:
        """Give back a permit that `client` has taken."""
        self._limit.give(client)
        self._hand_out()

    @asynccontextmanager
    async def one(self, client: str) -> AsyncIterator[None]:
        """Hold a permit while the block runs."""
        await self.take(client)
        try:
            yield
        finally:
            self.give(client)

    def _hand_out(self) -> None:
        """Give free permits to waiting clients. The clients get one permit each, in turn, until no client may take
        another permit.
        """
        handed_out = True
        while handed_out:
            handed_out = False
            for client in list(self._waiting):
                if self._limit.fits(client):
                    turns = self._waiting.pop(client)
                    turn = turns.popleft()
                    if turns:
                        self._waiting[client] = turns
                    if not turn.done():  # the call may have been cancelled a moment ago
                        self._limit.take(client)
                        turn.set_result(None)
                    handed_out = True

    def _leave(self, client: str, turn: asyncio.Future[None]) -> None:
        """Remove `turn` from the waiting turns, if it is still there."""
        turns = self._waiting.get(client, deque())
        if turn in turns:
            turns.remove(turn)
        if not turns:
            self._waiting.pop(client, None)
