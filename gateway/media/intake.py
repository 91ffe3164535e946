"""Receives the bytes of media items piece by piece. Before a piece is stored, it is counted against the budget of the
request.
"""

from __future__ import annotations

from collections.abc import Callable

from omni_pipeline.errors import bad_request


class Budget:
    """Limits the total size of the media of one request.

    Args:
        total: Largest number of bytes.
        hold: Called with a number of bytes. Adds this number to the total of all requests, or raises an error to refuse
            the bytes.
    """

    def __init__(self, total: int, hold: Callable[[int], None]) -> None:
        self.left = total
        self._hold = hold

    def charge(self, count: int) -> None:
        """Count `count` bytes. If `hold` raises an error, the error is passed on and nothing is counted."""
        self._hold(count)
        self.left -= count


class Intake:
    """The bytes of one media item that have arrived so far.

    Args:
        param: Request field of the item, for errors.
        most: Largest size of the item.
        budget: Limits the total size of the media of the request.

    Attributes:
        data: The bytes.
    """

    def __init__(self, param: str, most: int, budget: Budget) -> None:
        self.data = bytearray()
        self._param = param
        self._most = most
        self._budget = budget

    def expect(self, size: int) -> None:
        """Refuse an item whose announced size is too large. Raises OmniError (413)."""
        if size > self.allowed:
            raise bad_request(
                f"'{self._param}' is larger than the {self.allowed} bytes that are allowed for it.",
                param=self._param,
                code="media_too_large",
                status=413,
            )

    def add(self, piece: bytes) -> None:
        """Count `piece` against the budget, and keep it. Raises OmniError: 413 if the item becomes too large, or the
        error of the budget.
        """
        self.expect(len(self.data) + len(piece))
        self._budget.charge(len(piece))
        self.data += piece

    @property
    def allowed(self) -> int:
        """Maximum size of the item."""
        return min(self._most, len(self.data) + self._budget.left)
