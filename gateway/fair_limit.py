"""Divides a limited number of places or bytes among clients, so that no client can use all of them."""

from __future__ import annotations

from collections import Counter

# This part of a limit (1 / `_KEPT`) is kept for clients that have little.
_KEPT = 8  # an eighth
_LITTLE = 256  # a client has little if it has at most this part of the limit, or one place


class FairLimit:
    """A limit that clients share. There are two rules:

    - When a client has taken places or bytes, it may not hold more than the part of the limit that is free afterwards.
      So the first client gets at most a half of the limit, the next client a quarter, and so on. When clients give
      something back and take again, the parts of all clients become more equal.
    - The last eighth of the limit is kept for clients that have little: at most 1/256 of the limit, or one place. So
      even if other clients use up seven eighths of the limit, there is room for 32 clients that need little. If the
      last eighth has fewer than 32 places, there is room for one client per place.

    Args:
        most: The limit.
        halved: Whether the first rule applies. If clients take turns in a queue for the places, the rule is not needed.

    Attributes:
        most: The limit. It may change.
        held: The number of places or bytes that all clients together have.
    """

    def __init__(self, most: int, *, halved: bool = True) -> None:
        self.most = most
        self.held = 0
        self._halved = halved
        self._held_by: Counter[str] = Counter()

    @property
    def free(self) -> int:
        """The number of places or bytes that no client has; negative if the limit has become smaller."""
        return self.most - self.held

    @property
    def most_of_one(self) -> int:
        """The largest part that a client can get while the other clients have nothing."""
        return max(self.most // 2 if self._halved else self._shared, min(self._little, self.most))

    def held_by(self, client: str) -> int:
        """The number of places or bytes that a client has."""
        return self._held_by[client]

    def is_little(self, client: str, count: int) -> bool:
        """Whether `client` would still have little if it took `count` more."""
        return self._held_by[client] + count <= self._little

    def fits(self, client: str, count: int = 1) -> bool:
        """Whether a client may take `count` more."""
        if self.is_little(client, count):
            return count <= self.free
        own, together = self._held_by[client] + count, self.held + count
        return together <= self._shared and (not self._halved or own <= self.most - together)

    def take(self, client: str, count: int = 1) -> None:
        """Add `count` to what a client has. This method does not check the limit; see `fits`."""
        self.held += count
        self._held_by[client] += count
        if not self._held_by[client]:
            del self._held_by[client]

    def give(self, client: str, count: int = 1) -> None:
        """Subtract `count` from what a client has."""
        self.take(client, -count)

    @property
    def _shared(self) -> int:
        return self.most - self.most // _KEPT

    @property
    def _little(self) -> int:
        return max(1, self.most // _LITTLE)
