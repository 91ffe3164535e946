"""Grants claims for memory as long as all granted claims together stay within a limit. Clients take turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from msgspec import Struct

from omni_pipeline.deployment.host_memory import total_bytes

# Number of claims that may overtake the waiting claim whose turn it is, because they fit and it does not fit. After
# that number, nothing is granted until the claim fits.
OVERTAKERS = 8

# The limit if the configuration sets none: memory divided by `_DIVISOR`, or `_UNKNOWN_LIMIT` if its size is unknown.
_DIVISOR = 4
_UNKNOWN_LIMIT = 4 * 1024**3


class HeldClaim(Struct, eq=False):
    """A claim that waits or has been granted.

    Attributes:
        passing: Bytes that are held until the answer begins.
        lasting: Bytes that are held until the request ends.
        grant: Called when the claim is granted.
        client: Client that sent the request.
        granted: Whether it has been granted.
        overtaken: Number of claims that were granted first, while it was the turn of this claim.
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

    It is the turn of the client that holds the least or, among equals, whose latest grant is longest ago; and it is the
    turn of this client's oldest claim. If that claim does not fit, a few other claims may overtake it.

    Args:
        limit: Maximum number of granted bytes. A larger claim is granted when no claim holds anything and no other
            claim waits. It never delays another claim.

    Attributes:
        held: Number of granted bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._waiting: list[HeldClaim] = []
        self._held_by: Counter[str] = Counter()
        self._granted_at: dict[str, int] = {}  # number of the latest grant of each client that waits or holds something
        self._count = 0

    @property
    def waiting(self) -> int:
        """Number of claims that wait."""
        return len(self._waiting)

    def add(self, claim: HeldClaim) -> None:
        """Grant a claim, now or later."""
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
        self.held -= count
        self._held_by[client] -= count
        if not self._held_by[client]:
            del self._held_by[client]
        self._serve()
        if client not in self._held_by and all(claim.client != client for claim in self._waiting):
            self._granted_at.pop(client, None)

    def _serve(self) -> None:
        while (claim := self._next()) is not None:
            self._waiting.remove(claim)
            claim.granted = True
            self.held += claim.size
            self._held_by[claim.client] += claim.size
            self._count += 1
            self._granted_at[claim.client] = self._count
            claim.grant()

    def _next(self) -> HeldClaim | None:
        """The next claim to grant; None if nothing can be granted now."""
        # The order is stable, so a client's claims keep their order of arrival.
        in_turn = sorted(self._waiting, key=self._turn)
        small = [claim for claim in in_turn if claim.size <= self.limit]
        if not small:
            return in_turn[0] if in_turn and not self.held else None
        first = small[0]
        for claim in small:
            if self.held + claim.size <= self.limit:
                if claim is not first:
                    first.overtaken += 1
                return claim
            if first.overtaken >= OVERTAKERS:
                return None
        return None

    def _turn(self, claim: HeldClaim) -> tuple[int, int]:
        return self._held_by[claim.client], self._granted_at.get(claim.client, 0)


def default_limit() -> int:
    """The limit on granted bytes if the configuration sets none: a quarter of the memory that the server may use."""
    total = total_bytes()
    return _UNKNOWN_LIMIT if total is None else max(1, total // _DIVISOR)
