"""Counts the bytes that one session keeps."""

from __future__ import annotations

from gateway.answers.exchange import Exchanges
from omni_pipeline.errors import bad_request


class KeptBytes:
    """The bytes of one session. These bytes also count towards the limit on the bytes of all requests together.

    Args:
        exchanges: Counts the bytes of the whole server, and contains the limits.
        client: Client that opened the session.
    """

    def __init__(self, exchanges: Exchanges, client: str) -> None:
        self._exchanges = exchanges
        self._client = client
        self._most = exchanges.limits.realtime_bytes
        self._count = 0
        self._closed = False

    def hold(self, count: int) -> None:
        """Count more bytes. Raises OmniError: 400 if the session would keep too many bytes, 429 if the server has no
        room for these bytes of this client.
        """
        if self._count + count > self._most:
            raise bad_request(
                f"The session would hold more than {self._most} bytes of sound, pictures and text; delete items, or "
                "clear the input audio buffer.",
                code="session_too_large",
            )
        self._exchanges.hold(self._client, count)
        self._count += count

    def release(self, count: int) -> None:
        """Reduce the count by `count`."""
        if not self._closed:
            self._count -= count
            self._exchanges.hold(self._client, -count)

    def close(self) -> None:
        """Reduce the count to zero. Later calls of `release` have no effect."""
        self.release(self._count)
        self._closed = True
