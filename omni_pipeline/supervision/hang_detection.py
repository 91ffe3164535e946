"""Signs of life: tells a worker that hangs from one that is busy with a long step.

A worker beats between steps. One whose beats fail to come is looked at from outside: as long as it, or a process under
it, uses the CPU or waits for a disk, it is at work. One that does neither has been stopped, or waits for something
that will never come. And no single step may last for ever, however busy.

Time is counted in looks, not by the clock: when all of us were stopped together (Ctrl-Z, a suspended machine), that is
no sign of death.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from omni_pipeline.os_process import stat

# Seconds between two looks, and the most that one look may count for.
LOOK_SECONDS = 1.0
_MOST_SECONDS = 2 * LOOK_SECONDS

# Beats come every second. One that is no later than this needs no look at the process.
_LATE_SECONDS = 2.0

# A process that uses less of a core than this does nothing: its I/O thread alone needs some when messages come.
_BUSY_SHARE = 0.02

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class Bounds(Struct, frozen=True):
    """When a process counts as hung.

    Attributes:
        silent_seconds: Neither beating nor computing, once it has loaded; also for one that is stopped by a signal.
        step_seconds: Busy without a beat, once it has loaded; or without computing while it loads.
    """

    silent_seconds: float
    step_seconds: float


class Sample(Struct, frozen=True):
    """A process at one moment: its state, a letter as in ``/proc``, and the CPU seconds of it and all under it."""

    state: str
    cpu_seconds: float


class Vitals:
    """The signs of life of one process.

    Args:
        pid: Its id.
        bounds: When it counts as hung.
        sample: How it is looked at.
    """

    def __init__(self, pid: int, bounds: Bounds, sample: Callable[[int], Sample | None] | None = None) -> None:
        self._pid = pid
        self._bounds = bounds
        self._sample = sample or take_sample
        self._loaded = False
        self._unheard = 0.0
        self._silent = 0.0
        self._cpu_seconds: float | None = None

    def beat(self) -> None:
        """It has said that it is ready, or alive."""
        self._loaded = True
        self._unheard = self._silent = 0.0
        self._cpu_seconds = None

    def look(self, elapsed: float) -> str | None:
        """Look at it again; what is wrong, once a bound is about to be passed.

        Args:
            elapsed: Seconds since the last look.
        """
        elapsed = min(elapsed, _MOST_SECONDS)
        self._unheard += elapsed
        self._silent += elapsed
        if self._unheard <= _LATE_SECONDS:
            return None
        sample = self._sample(self._pid)
        if sample is None:
            return None  # it has ended, and the news is under way
        before, self._cpu_seconds = self._cpu_seconds, sample.cpu_seconds
        if before is None:
            return None
        if sample.state == "D" or sample.cpu_seconds - before >= _BUSY_SHARE * elapsed:
            self._silent = 0.0
        bounds = self._bounds
        patience = bounds.silent_seconds if self._loaded or sample.state == "T" else bounds.step_seconds
        if self._silent + LOOK_SECONDS > patience:
            return f"gave no sign of life for {self._silent:.0f} s"
        if self._loaded and self._unheard > bounds.step_seconds:
            return f"was busy with a single step for {self._unheard:.0f} s"
        return None


def take_sample(pid: int) -> Sample | None:
    """What ``/proc`` says of process `pid`; None when it is gone."""
    fields = stat(pid)
    if fields is None:
        return None
    under = (stat(child) for child in _descendants(pid))
    return Sample(fields[0], sum(_cpu_seconds(each) for each in (fields, *under) if each is not None))


def is_stopped(pid: int) -> bool:
    """Whether process `pid` has been stopped by a signal."""
    fields = stat(pid)
    return fields is not None and fields[0] == "T"


def _cpu_seconds(fields: list[str]) -> float:
    """User and system time, that of children that have ended included."""
    return sum(map(int, fields[11:15])) * _TICK_SECONDS


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from _descendants(child)
