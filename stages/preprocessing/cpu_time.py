"""Ends this process when a media item uses more CPU time than is allowed for its work.

A decoder is one long call in C, which no Python code can interrupt. But the kernel can end the process. A timer of the
kernel counts the CPU time of all threads of the process, and sends a signal when the allowed time is used up. The
parent process recognises this signal.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

# The signal of the kernel's timer. Its default action, which Python leaves as it is, ends the process.
OUT_OF_TIME = signal.SIGPROF


@contextmanager
def limited_cpu_time(seconds: float) -> Iterator[None]:
    """Inside the `with` block, the process may use `seconds` of CPU time, plus the time that `extend` adds. If it uses
    more, the process ends.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def extend(seconds: float) -> None:
    """Let the running `with` block use `seconds` more CPU time. Without a running block, the call has no effect."""
    left = signal.getitimer(signal.ITIMER_PROF)[0]
    if left:
        signal.setitimer(signal.ITIMER_PROF, left + seconds)
