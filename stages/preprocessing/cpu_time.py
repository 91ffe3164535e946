"""Ends this process when a media item uses more CPU time than is allowed for its work.

A decoder is one long call in C, which no Python code can interrupt. But the kernel can end the process: its timer
counts the CPU time of all threads of the process, and then sends a signal. The parent process recognises this signal.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

# The signal of the kernel's timer. Its default action, which Python leaves as it is, ends the process.
OUT_OF_TIME = signal.SIGPROF


@contextmanager
def limited_cpu_time(seconds: float) -> Iterator[None]:
    """Allow the block `seconds` of CPU time, and the time that `extend` adds. If the block uses more, the process
    ends.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def extend(seconds: float) -> None:
    """Allow the running block `seconds` more. Without a running block, the call has no effect."""
    left = signal.getitimer(signal.ITIMER_PROF)[0]
    if left:
        signal.setitimer(signal.ITIMER_PROF, left + seconds)
