"""Grants claims for memory. A *claim* is a stage's request for memory for the decoded media of one request. All granted
claims together stay within a limit, and clients take turns.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from gateway.fair_limit import FairLimit
from omni_pipeline.deployment.host_memory import total_bytes

# If the claim that has its turn does not fit, up to this number of other claims may overtake that claim. After that, no
# claim is granted until the overtaken claim fits. Claims of clients with little memory do not count as overtaking.
OVERTAKERS = 8

# If the configuration sets no limit, the limit is the memory of the machine divided by `_DIVISOR`, or `_UNKNOWN_LIMIT`
# if the size of the memory is unknown.
_DIVISOR = 4
_UNKNOWN_LIMIT = 4 * 1024**3


class HeldClaim(Struct, eq=False):
    """A claim that waits or has been granted.

    Attributes:
        passing: Bytes that are held until the answer begins.
        lasting: Bytes that are held until the request ends.
        grant: Called when the claim is granted.
        client: Client that sent the request.
        granted: Whether the claim has been granted.
        overtaken: Number of other claims that have been granted while this claim had its turn but did not fit.
            Claims of clients with little memory do not count.
    """

    passing: int
    lasting: int
    grant: Callable[[], None]
    client: str = ""
    granted: bool = False
    overtaken: int = 0

    @property
    def size(self) -> int:
        return self.passing + self.lasting


class Grants:
    """The memory that stages may use for the decoded media of all requests.

    The next turn belongs to the client that holds the fewest bytes. Among clients that hold equally many bytes, the
    turn belongs to the client whose latest grant is the oldest. When a client has its turn, the oldest claim of this
    client is granted. If that claim does not fit, a few other claims may overtake it.

    The last eighth of the limit is kept for clients with little memory, see `FairLimit`. If a client would still have
    little memory after the grant, its claim is granted as soon as the claim fits, even if larger claims wait. So large
    claims do not delay a client that needs little memory.

    A *huge* claim is a claim for more than seven eighths of the limit. A huge claim has to wait until no other claim
    holds bytes, and until all waiting claims are huge. So a huge claim delays only claims that arrive after its grant,
    and other huge claims.

    Args:
        limit: Maximum number of granted bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = FairLimit(limit, halved=False)
        self._waiting: list[HeldClaim] = []
        # the number of the latest grant to each client that waits or holds bytes; grants are numbered in order
        self._granted_at: dict[str, int] = {}
        self._count = 0

    @property
    def limit(self) -> int:
        """Maximum number of granted bytes."""
        return self._limit.most

    @property
    def held(self) -> int:
        """Number of granted bytes."""
        return self._limit.held

    @property
    def waiting(self) -> int:
        """Number of claims that wait."""
        return len(self._waiting)

    def add(self, claim: HeldClaim) -> None:
        """Grant a claim as soon as it fits and its turn has come."""
        self._waiting.append(claim)
        self._serve()

    def begin_answer(self, claim: HeldClaim) -> None:
        """Release the bytes that are held only until the answer begins."""
        if claim.granted:
            passing, claim.passing = claim.passing, 0
            self._release(claim.client, passing)

    def drop(self, claim: HeldClaim) -> None:
        """Release all bytes of a claim, or withdraw it if it still waits."""
        if claim.granted:
            size, claim.passing, claim.lasting = claim.size, 0, 0
            self._release(claim.client, size)
        else:
            self._waiting.remove(claim)
            self._serve()

    def _release(self, client: str, count: int) -> None:
        self._limit.give(client, count)
        self._serve()
        if not self._limit.held_by(client) and all(claim.client != client for claim in self._waiting):
            self._granted_at.pop(client, None)

    def _serve(self) -> None:
        while (claim := self._next()) is not None:
            self._waiting.remove(claim)
            claim.granted = True
            self._limit.take(claim.client, claim.size)
            self._count += 1
            self._granted_at[claim.client] = self._count
            claim.grant()

    def _next(self) -> HeldClaim | None:
        """The next claim to grant; None if nothing can be granted now."""
        # The order is stable, so a client's claims keep their order of arrival.
        in_turn = sorted(self._waiting, key=self._turn)
        for claim in in_turn:
            if self._limit.is_little(claim.client, claim.size) and claim.size <= self._limit.free:
                return claim
        small = [claim for claim in in_turn if claim.size <= self._limit.most_of_one]
        if not small:
            return in_turn[0] if in_turn and not self.held else None
        first = small[0]
        for claim in small:
            if self._limit.fits(claim.client, claim.size):
                if claim is not first:
                    first.overtaken += 1
                return claim
            if first.overtaken >= OVERTAKERS:
                return None
        return None

    def _turn(self, claim: HeldClaim) -> tuple[int, int]:
        return self._limit.held_by(claim.client), self._granted_at.get(claim.client, 0)


def default_limit() -> int:
    """The default limit on granted bytes: a quarter of the memory that the server may use."""
    total = total_bytes()
    return _UNKNOWN_LIMIT if total is None else max(1, total // _DIVISOR)
