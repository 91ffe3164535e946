"""Measures how busy the bench itself is, because a busy client sees answers later than they arrive."""

from __future__ import annotations

import time


class CpuClock:
    """Starts with the object."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._used = time.process_time()

    def share(self) -> float:
        """CPU seconds of this process per second since the start. One event loop cannot use more than one."""
        return (time.process_time() - self._used) / (time.perf_counter() - self._began)
