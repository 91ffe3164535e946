"""Limits the resources that requests hold: places, bytes and memory. Queues further requests. When the queue is full,
refuses requests.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

from gateway.grants import Grants, HeldClaim, default_limit
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import ErrorInfo, OmniError, unavailable

Turn: TypeAlias = asyncio.Future[None]

# Bounds on `Retry-After`, in seconds.
_SOONEST, _LATEST = 1, 60
# Weight of the latest time between two departures in the moving average of the times between departures.
_NEWEST = 0.2


class Place:
    """The resources that one admitted request occupies: a place in the server, places in stages, bytes, and memory.

    The handler of the request holds the place, and so does the pipeline from `lend` to `take_back`. The resources are
    free when neither holds the place any more.

    Args:
        admission: Counts the resources that the request occupies.
        client: Client that sent the request.
    """

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self._client = client
        self._arriving = True
        self._stages: Collection[str] = ()
        self._bytes = 0
        self._claims: list[HeldClaim] = []
        self._lent = False
        self._left = False

    def arrived(self) -> None:
        """Note that the body and the media of the request have arrived."""
        if self._arriving:
            self._arriving = False
            self._admission.arrived(self._client)

    def need(self, stages: Collection[str]) -> None:
        """Count the request in each of `stages`. Raises OmniError (429) if one of these stages is full."""
        self._admission.enter(stages)
        self._stages = stages

    def hold(self, count: int) -> None:
        """Hold `count` more bytes. Raises OmniError (429) if all requests together would then hold more bytes than the
        limit.
        """
        self._admission.hold(count)
        self._bytes += count

    def claim(self, passing: int, lasting: int, grant: Callable[[], None]) -> None:
        """Claim memory for the data that stages produce for the request.

        Args:
            passing: Bytes that no stage holds any more when the answer begins.
            lasting: Bytes that some stage may hold until the request ends.
            grant: Called when the claim is granted. If the request ends before, `grant` is never called.
        """
        claim = HeldClaim(passing, lasting, grant, self._client)
        self._claims.append(claim)
        self._admission.grants.add(claim)

    def free(self) -> None:
        """Release the held bytes and the `passing` memory, because no stage holds them any more when the answer
        begins.
        """
        self._admission.hold(-self._bytes)
        self._bytes = 0
        for claim in self._claims:
            self._admission.grants.begin_answer(claim)

    def free_memory(self) -> None:
        """Release all memory, because the answer is complete. The client may not have received all bytes of the answer
        yet.
        """
        for claim in self._claims:
            self._admission.grants.drop(claim)
        self._claims = []

    def withdraw(self) -> None:
        """Withdraw the claims that have not been granted yet, because the request has ended."""
        waiting = [claim for claim in self._claims if not claim.granted]
        self._claims = [claim for claim in self._claims if claim.granted]
        for claim in waiting:
            self._admission.grants.drop(claim)

    def lend(self) -> None:
        """Hand the request to the pipeline, which holds the place until `take_back`."""
        self._lent = True

    def take_back(self) -> None:
        """Note that the pipeline holds no data of the request any more. Only the handler still holds the place."""
        self._lent = False
        self.free()
        self.free_memory()
        if self._left:
            self._admission.leaving -= 1
            self._release()

    def leave(self) -> None:
        """Note that the handler of the request has ended."""
        self._left = True
        self.arrived()
        if self._lent:
            self._admission.leaving += 1
        else:
            self._release()

    def _release(self) -> None:
        self._admission.hold(-self._bytes)
        self.free_memory()
        self._admission.leave(self._stages)


class Admission:
    """Admits requests, up to the limits.

    Args:
        limits: The limits on load.

    Attributes:
        waiting: Number of requests that wait to be let in.
        held_bytes: Number of bytes that requests hold.
        grants: The memory that stages may use for decoded media.
        leaving: Number of requests that have ended, but of which the pipeline still holds data.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._inside = 0
        self._arriving: Counter[str] = Counter()
        self._in_stage: Counter[str] = Counter()
        self.held_bytes = 0
        self.grants = Grants(limits.decoded_bytes or default_limit())
        self.leaving = 0
        self._line = _Queue()
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._left_at: float | None = None  # time at which a request last left while the server was full
        self._mean_gap = 0.0

    @property
    def waiting(self) -> int:
        return len(self._line)

    @asynccontextmanager
    async def admit(self, client: str, deadline: float) -> AsyncIterator[Place]:
        """Wait for a place in the server. Hold the place until the block ends, or until `take_back` if the place is
        lent then.

        Args:
            client: Client that sent the request. Clients take turns, even if one client has many more requests waiting.
            deadline: Time on the event loop's clock until which the request may wait.

        Raises:
            OmniError: 429 with a time to retry, if the queue is full, if the deadline passes, or if the request loses
                its position in the queue to a request of another client; 503 when the server is closing.
        """
        try:
            async with asyncio.timeout_at(deadline):
                await self._come_in(client)
        except TimeoutError as error:
            raise self._busy() from error
        place = Place(self, client)
        try:
            yield place
        finally:
            place.leave()

    def close(self) -> None:
        """Admit no more requests. Requests that wait fail with 503."""
        self._closed = True
        while (found := self._line.next()) is not None:
            found[1].set_exception(_closing())

    async def empty(self) -> None:
        """Wait until no request is inside."""
        await self._empty.wait()

    # --- called by `Place` ---

    def arrived(self, client: str) -> None:
        """Note that the body and the media of one admitted request of `client` have arrived."""
        self._arriving[client] -= 1
        if not self._arriving[client]:
            del self._arriving[client]
        self._let_in()

    def enter(self, stages: Collection[str]) -> None:
        for stage in stages:
            limit = self._limits.stage_requests.get(stage)
            if limit is not None and self._in_stage[stage] >= limit:
                raise self._too_many(f"The server is busy with {limit} requests that need its stage {stage}")
        self._in_stage.update(stages)

    def leave(self, stages: Collection[str]) -> None:
        self._in_stage.subtract(stages)
        self._go_out()

    def hold(self, count: int) -> None:
        if self.held_bytes + count > self._limits.held_bytes:
            raise self._too_many("The requests in progress already hold all the bytes that this server allows")
        self.held_bytes += count

    # --- in and out ---

    async def _come_in(self, client: str) -> None:
        if self._closed:
            raise _closing()
        if self._may_enter(client):
            self._enter(client)
            return
        if len(self._line) >= self._limits.queued:
            # The queue is full. If another client has at least two more requests in the queue, its last request is
            # refused instead.
            last = self._line.last_of_longest(than=client)
            if last is None:
                raise self._busy()
            last.set_exception(self._busy())
        turn = self._line.join(client)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._go_out()  # the request was admitted just before the cancellation
                self.arrived(client)
            else:
                self._line.give_up(client, turn)
            raise

    def _may_enter(self, client: str) -> bool:
        """Whether a request of `client` can be admitted now.

        A request that is admitted but has not arrived yet is incomplete. A client may get another place only if it has
        fewer incomplete requests than there are free places. So a client that never completes its requests leaves half
        of the places to other clients.
        """
        free = self._limits.requests - self._inside
        return free > 0 and self._arriving[client] < free

    def _enter(self, client: str) -> None:
        self._inside += 1
        self._arriving[client] += 1
        self._empty.clear()

    def _let_in(self) -> None:
        """Admit the waiting requests for which there is a place now."""
        while (found := self._line.next(self._may_enter)) is not None:
            client, turn = found
            self._enter(client)
            turn.set_result(None)

    def _go_out(self) -> None:
        self._measure()
        self._inside -= 1
        self._let_in()
        if not self._inside:
            self._empty.set()

    def _measure(self) -> None:
        """Update the mean time between two departures. Only departures while the server is full count."""
        now = asyncio.get_running_loop().time() if self._inside >= self._limits.requests else None
        if now is not None and self._left_at is not None:
            self._mean_gap += _NEWEST * (now - self._left_at - self._mean_gap)
        self._left_at = now

    def _busy(self) -> OmniError:
        return self._too_many(f"The server is busy with {self._inside} requests, and {len(self._line)} are waiting")

    def _too_many(self, reason: str) -> OmniError:
        """The error for a request beyond a limit, with an estimate of when a place becomes free."""
        expected = math.ceil(self._mean_gap * (len(self._line) + 1))
        return OmniError(
            ErrorInfo(
                status=429,
                message=f"{reason}; try again in a moment.",
                type="rate_limit_error",
                code="too_many_requests",
                retry_after=min(max(expected, _SOONEST), _LATEST),
            )
        )


class _Queue:
    """Waiting requests. Clients take turns, and the requests of one client keep their order of arrival."""

    def __init__(self) -> None:
        self._clients: dict[str, deque[Turn]] = {}  # in the order in which clients get their next turn
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def join(self, client: str) -> Turn:
        turn = asyncio.get_running_loop().create_future()
        self._clients.setdefault(client, deque()).append(turn)
        self._length += 1
        return turn

    def next(self, may: Callable[[str], bool] = lambda client: True) -> tuple[str, Turn] | None:
        """Remove the next request from the queue, and return its client and its turn. Skips clients that `may` does not
        accept.
        """
        for client in list(self._clients):
            if not may(client):
                continue
            turns = self._clients.pop(client)
            while turns:
                turn = turns.popleft()
                self._length -= 1
                if not turn.done():  # the request may have been cancelled a moment ago
                    if turns:
                        self._clients[client] = turns
                    return client, turn
        return None

    def last_of_longest(self, *, than: str) -> Turn | None:
        """Remove and return the last turn of the client with the most turns.

        Returns None unless that client has at least two turns more than the client `than`.
        """
        client = max(self._clients, key=lambda name: len(self._clients[name]), default=than)
        turns = self._clients.get(client, deque())
        if len(turns) <= len(self._clients.get(than, ())) + 1 or turns[-1].done():
            return None
        self._length -= 1
        return self._clients[client].pop()

    def give_up(self, client: str, turn: Turn) -> None:
        """Remove `turn` from the queue, if it is still there."""
        turns = self._clients.get(client, deque())
        with suppress(ValueError):
            turns.remove(turn)
            self._length -= 1
        if not turns:
            self._clients.pop(client, None)


def _closing() -> OmniError:
    return unavailable("The server is shutting down.", code="shutting_down")
