"""Ends this process when a media item uses more CPU time than its work deserves.

A decoder is one long call in C, which no Python code can interrupt. The kernel can: its timer counts the CPU time of
all threads of the process, and its signal ends the process at once. The parent of the process knows the signal.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

# The signal of the kernel's timer. Its default action, which Python leaves as it is, ends the process.
OUT_OF_TIME = signal.SIGPROF


@contextmanager
def limited_cpu_time(seconds: float) -> Iterator[None]:
    """Allow the block this much CPU time, and what `extend` adds. The process does not survive more."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def extend(seconds: float) -> None:
    """Allow the running block this much more. Without a running block, nothing is limited and nothing is extended."""
    left = signal.getitimer(signal.ITIMER_PROF)[0]
    if left:
        signal.setitimer(signal.ITIMER_PROF, left + seconds)
