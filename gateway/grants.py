"""Grants claims for memory in order of arrival, as long as all granted claims together stay within a limit."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from omni_pipeline.deployment.host_memory import total_bytes

# Number of later claims that may be granted before the oldest waiting claim, because they fit and it does not. Then
# nothing more is granted until the oldest fits.
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
        granted: Whether it has been granted.
        overtaken: Number of later claims that were granted first, while this claim was the oldest.
    """

    passing: int
    lasting: int
    grant: Callable[[], None]
    granted: bool = False
    overtaken: int = 0

    @property
    def size(self) -> int:
        return self.passing + self.lasting


class Grants:
    """The memory that stages may use for the decoded media of all requests.

    Args:
        limit: Maximum number of granted bytes. A claim that is larger is granted when no other claim holds anything.

    Attributes:
        held: Number of granted bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._waiting: list[HeldClaim] = []

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
            self._release(claim.passing)
            claim.passing = 0

    def drop(self, claim: HeldClaim) -> None:
        """Release all bytes of a claim, or withdraw it if it still waits."""
        if claim.granted:
            self._release(claim.size)
            claim.passing = claim.lasting = 0
        else:
            self._waiting.remove(claim)
            self._serve()

    def _release(self, count: int) -> None:
        self.held -= count
        self._serve()

    def _serve(self) -> None:
        """Grant the claims that fit, the oldest first. A few later claims may overtake one that does not fit."""
        while self._waiting and self._fits(self._waiting[0]):
            self._grant(self._waiting[0])
        for claim in self._waiting[1:]:
            oldest = self._waiting[0]
            if oldest.overtaken == OVERTAKERS:
                return
            if self._fits(claim):
                oldest.overtaken += 1
                self._grant(claim)

    def _fits(self, claim: HeldClaim) -> bool:
        return not self.held or self.held + claim.size <= self.limit

    def _grant(self, claim: HeldClaim) -> None:
        self._waiting.remove(claim)
        claim.granted = True
        self.held += claim.size
        claim.grant()


def default_limit() -> int:
    """The limit on granted bytes if the configuration sets none: a quarter of the memory that the server may use."""
    total = total_bytes()
    return _UNKNOWN_LIMIT if total is None else max(1, total // _DIVISOR)
