"""Represents a GPU by a lock. A process holds the lock during a step, so two processes never compute on the GPU at the
same time. Processes that share a GPU take turns, in the order in which they ask.

The operating system does not keep this order: when a lock becomes free, any waiting process can get it, even one that
has only just asked. So there is a second lock, the turnstile. A process holds the turnstile while it waits for the GPU.
Only one process waits for the GPU at a time, and no other process can overtake it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager


class Gpu:
    """One GPU.

    Args:
        directory: Directory that all processes of the server share.
        name: Number of the GPU and, for a GPU of a replica, the number of the replica.
    """

    def __init__(self, directory: str, name: str) -> None:
        self._file, self._turnstile = (
            os.open(os.path.join(directory, f"{kind}-{name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
            for kind in ("gpu", "turnstile")
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the GPU, and hold it until the block ends."""
        fcntl.flock(self._turnstile, fcntl.LOCK_EX)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        fcntl.flock(self._turnstile, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._file)
        os.close(self._turnstile)
