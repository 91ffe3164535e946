"""Tells a worker that hangs from a worker that is busy with a long step.

A worker sends heartbeats between steps. When they fail to come, this module examines the process from outside. The
worker is at work as long as its process, or a process under it, uses the CPU or waits for a disk. If it does neither,
it has been stopped, or it waits for something that will never come. No single step may last for ever, however busy the
worker is.

A worker that waits for its GPU spins. So it looks busy even when the GPU hangs, or when the ranks of a stage wait for
each other. For a worker on a GPU, CPU time of its own process and of its ranks therefore counts as a sign of life only
for a shorter time. Proof of progress is its pulse (see `worker.pulse`), processes that compile kernels for it, and
memory that it allocates, as compilers inside it do. While one worker compiles, other workers on GPUs may need the same
kernels, and wait for them without any sign of life.

Time is counted in looks, not by the clock. When the whole service was stopped (Ctrl-Z, a suspended machine), the time
that has passed is no sign of a hang.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from omni_pipeline.os_process import stat

# Seconds between two looks, and the most seconds that one look may add to a worker's silence.
LOOK_SECONDS = 1.0
_MOST_SECONDS = 2 * LOOK_SECONDS

# Heartbeats come every second. As long as none is later than this, the process is not examined.
_LATE_SECONDS = 2.0

# A process that uses less than this share of a core is idle: its I/O thread alone uses a little when messages come.
_BUSY_SHARE = 0.02

# A process with this many page faults a second allocates memory. Compilers cause thousands, spinning none.
_FAULTS = 100

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class Bounds(Struct, frozen=True):
    """When a process counts as hung.

    Attributes:
        silent_seconds: Time without a heartbeat and without computing, once it has loaded. Holds at any time for a
            process that a signal has stopped.
        step_seconds: Time that it is busy without a heartbeat, once it has loaded. While it loads, time without
            computing.
        gpu_wait_seconds: On a GPU, time that it is busy without progress, once it has loaded. While it loads,
            `step_seconds` holds instead.
    """

    silent_seconds: float
    step_seconds: float
    gpu_wait_seconds: float


class Sample(Struct, frozen=True):
    """A process at one moment.

    Attributes:
        state: A letter, as in ``/proc``.
        cpu_seconds: CPU time of it and of all processes under it.
        helper_seconds: The part of `cpu_seconds` that processes under it used which are not ranks.
        faults: Page faults of it and its ranks.
    """

    state: str
    cpu_seconds: float
    helper_seconds: float = 0.0
    faults: int = 0


class Vitals:
    """The signs of life of one process.

    Args:
        pid: Its id.
        bounds: When it counts as hung.
        sample: Takes a sample of it and its ranks.
        on_gpu: Whether it may spin while it waits.

    Attributes:
        compiles: Whether, at the last look, kernels were being compiled for it.
    """

    def __init__(
        self,
        pid: int,
        bounds: Bounds,
        sample: Callable[[int, Collection[int]], Sample | None] | None = None,
        *,
        on_gpu: bool = False,
    ) -> None:
        self.compiles = False
        self._pid = pid
        self._bounds = bounds
        self._sample = sample or take_sample
        self._on_gpu = on_gpu
        self._loaded = False
        self._unheard = 0.0
        self._silent = 0.0
        self._stuck = 0.0
        self._last: Sample | None = None

    def beat(self) -> None:
        """Note a message from it that it is ready or alive."""
        self._loaded = True
        self._unheard = self._silent = self._stuck = 0.0
        self._last = None
        self.compiles = False

    def pulse(self) -> None:
        """Note a message from it that it makes progress."""
        self._silent = self._stuck = 0.0

    def look(self, elapsed: float, ranks: Collection[int] = (), *, others_compile: bool = False) -> str | None:
        """Examine it again. Returns what is wrong, once a bound is about to be passed; otherwise None.

        Args:
            elapsed: Seconds since the last look.
            ranks: Processes under it that share its work.
            others_compile: Whether kernels are being compiled for any worker.
        """
        elapsed = min(elapsed, _MOST_SECONDS)
        self._unheard += elapsed
        self._silent += elapsed
        self._stuck += elapsed
        if self._unheard <= _LATE_SECONDS:
            return None
        sample = self._sample(self._pid, ranks)
        if sample is None:
            return None  # it has ended, and the report of its end is on the way
        last, self._last = self._last, sample
        if last is None:
            return None
        if sample.state == "D" or sample.cpu_seconds - last.cpu_seconds >= _BUSY_SHARE * elapsed:
            self._silent = 0.0
        else:
            self._stuck -= elapsed  # this time counts as silence instead
        if self._on_gpu:
            self._look_for_progress(last, sample, elapsed, others_compile)
        return self._verdict(sample)

    def _look_for_progress(self, last: Sample, sample: Sample, elapsed: float, others_compile: bool) -> None:
        self.compiles = sample.helper_seconds - last.helper_seconds >= _BUSY_SHARE * elapsed
        if self.compiles or (others_compile and sample.state != "T"):
            self._silent = self._stuck = 0.0
            self._unheard -= elapsed  # compilers end by themselves
        elif sample.state == "D" or sample.faults - last.faults >= _FAULTS * elapsed:
            self._stuck = 0.0

    def _verdict(self, sample: Sample) -> str | None:
        bounds = self._bounds
        patience = bounds.silent_seconds if self._loaded or sample.state == "T" else bounds.step_seconds
        if self._silent + LOOK_SECONDS > patience:
            return f"gave no sign of life for {self._silent:.0f} s"
        patience = bounds.gpu_wait_seconds if self._loaded else bounds.step_seconds
        if self._on_gpu and self._stuck + LOOK_SECONDS > patience:
            return f"was busy but made no progress for {self._stuck:.0f} s, as when its GPU hangs"
        if self._loaded and self._unheard > bounds.step_seconds:
            return f"was busy with a single step for {self._unheard:.0f} s"
        return None


def take_sample(pid: int, ranks: Collection[int] = ()) -> Sample | None:
    """A sample of process `pid` and the processes under it, from ``/proc``; None when it is gone."""
    fields = stat(pid)
    if fields is None:
        return None
    own: list[list[str]] = [fields]
    helpers: list[list[str]] = []
    for child in _descendants(pid):
        below = stat(child)
        if below is not None:
            (own if child in ranks else helpers).append(below)
    # Fields 13 and 14 of a parent hold the times of its children that have ended.
    helper_ticks = _ticks(own, slice(13, 15)) + _ticks(helpers, slice(11, 15))
    return Sample(
        state=fields[0],
        cpu_seconds=(_ticks(own, slice(11, 13)) + helper_ticks) * _TICK_SECONDS,
        helper_seconds=helper_ticks * _TICK_SECONDS,
        faults=sum(int(each[7]) + int(each[9]) for each in own),
    )


def is_stopped(pid: int) -> bool:
    """Whether process `pid` has been stopped by a signal."""
    fields = stat(pid)
    return fields is not None and fields[0] == "T"


def _ticks(processes: Iterable[list[str]], part: slice) -> int:
    return sum(sum(map(int, fields[part])) for fields in processes)


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from _descendants(child)
