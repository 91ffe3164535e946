"""Bounds how many requests are in the server at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from omni_pipeline.errors import ErrorInfo, OmniError


class Admission:
    """Lets up to `limit` requests in; it does not queue, the pipeline does."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Holds a place. Raises OmniError (429, with the time to wait) when there is none."""
        if self._inside >= self._limit:
            raise OmniError(
                ErrorInfo(
                    status=429,
                    message=f"The server is busy with {self._inside} requests; try again in a moment.",
                    type="rate_limit_error",
                    code="too_many_requests",
                    retry_after=1,
                )
            )
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def empty(self) -> None:
        """Returns when nobody is inside."""
        await self._empty.wait()
