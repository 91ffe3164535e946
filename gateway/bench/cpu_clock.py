"""Measures how busy the bench itself is. A busy client notices the arrival of an answer too late."""

from __future__ import annotations

import time


class CpuClock:
    """The measurement starts when the object is created."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._used = time.process_time()

    def share(self) -> float:
        """The CPU time that this process has used since the start, divided by the time that has passed since the start.
        One event loop uses at most one core, so for an event loop alone, the result is at most 1.
        """
        return (time.process_time() - self._used) / (time.perf_counter() - self._began)
