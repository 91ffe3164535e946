"""Distinguishes a worker that hangs from a worker that is busy with a long step.

A worker sends heartbeats between steps. When heartbeats do not arrive, this module examines the process from outside. A
worker counts as busy as long as its process, or a descendant of its process, uses the CPU or waits for a disk. A worker
that is not busy has been stopped by a signal, or waits for an event that will never happen. A busy worker also counts
as hung if a single step takes too long.

While a worker waits for its GPU, it uses the CPU all the time. So the worker seems to be busy even if the GPU hangs, or
if the ranks of a stage wait for each other. For this reason, CPU time of a worker on a GPU and of its ranks counts as
activity only for `gpu_wait_seconds` after the latest progress. This time is normally much shorter than `step_seconds`.
These signs show progress:

- the worker's pulse (see `worker.pulse`);
- processes that compile kernels for the worker;
- a wait for a disk;
- memory that the worker allocates, because compilers inside the worker allocate memory.

While one worker compiles, other workers on GPUs may wait for the same kernels without any visible activity. So the time
in which one worker compiles does not count for the other workers either.

The main process examines each worker about once a second. Each examination adds only a limited time to the measured
times, even if the previous examination was long ago. The reason is that the whole service may have been stopped in
between, by Ctrl-Z or because the machine was suspended. Such a pause is not a sign of a hang.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from omni_pipeline.os_process import stat
from omni_pipeline.wire.host_messages import Sample

# `LOOK_SECONDS` is the time between two examinations of a worker. `_MOST_SECONDS` is the maximum time that one
# examination adds to the measured times.
LOOK_SECONDS = 1.0
_MOST_SECONDS = 2 * LOOK_SECONDS

# Heartbeats come every second. A process is examined only if its latest heartbeat is older than this number of seconds.
_LATE_SECONDS = 2.0

# A process that uses less than this share of a CPU core is idle. The I/O thread of an idle process also uses a little
# CPU time when messages arrive.
_BUSY_SHARE = 0.02

# A process with at least this number of page faults per second allocates memory. Compilers cause thousands of page
# faults per second. A thread that spins causes no page faults.
_FAULTS = 100

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class Bounds(Struct, frozen=True):
    """Time limits after which a process counts as hung.

    Attributes:
        silent_seconds: Maximum time without a heartbeat and without computation, for a process that has finished
            loading. If a signal has stopped the process, this limit also applies during loading.
        step_seconds: For a process that has finished loading: maximum time for which it may be busy without a
            heartbeat. For a process that is still loading: maximum time without computation.
        gpu_wait_seconds: For a process on a GPU that has finished loading: maximum time for which it may be busy
            without progress. During loading, `step_seconds` is the limit instead.
    """

    silent_seconds: float
    step_seconds: float
    gpu_wait_seconds: float


class Vitals:
    """Measures how long one process has been inactive, and decides whether it hangs.

    Args:
        pid: Id of the process.
        bounds: Time limits after which the process counts as hung.
        sample: Function that takes a sample of the process and its ranks.
        on_gpu: Whether the process uses a GPU. Such a process may spin while it waits.

    Attributes:
        compiles: Whether kernels were being compiled for the process at the last examination.
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
        """Note that the process has sent a message, which shows that the process is ready or alive."""
        self._loaded = True
        self._unheard = self._silent = self._stuck = 0.0
        self._last = None
        self.compiles = False

    def pulse(self) -> None:
        """Note that the process has reported progress."""
        self._silent = self._stuck = 0.0

    def look(self, elapsed: float, ranks: Collection[int] = (), *, others_compile: bool = False) -> str | None:
        """Examine the process again. Returns a description of the problem if the process counts as hung, otherwise
        None.

        Args:
            elapsed: Seconds since the last examination.
            ranks: Ids of the processes that share the work of this process.
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
            return None  # the process has ended, and the report of its end is on the way
        last, self._last = self._last, sample
        if last is None:
            return None
        if sample.state == "D" or sample.cpu_seconds - last.cpu_seconds >= _BUSY_SHARE * elapsed:
            self._silent = 0.0
        else:
            self._stuck -= elapsed  # an idle process counts as silent, not as busy with a step
        if self._on_gpu:
            self._look_for_progress(last, sample, elapsed, others_compile)
        return self._verdict(sample)

    def _look_for_progress(self, last: Sample, sample: Sample, elapsed: float, others_compile: bool) -> None:
        self.compiles = sample.helper_seconds - last.helper_seconds >= _BUSY_SHARE * elapsed
        if self.compiles or (others_compile and sample.state != "T"):
            self._silent = self._stuck = 0.0
            # compilers end by themselves, so the time in which they run does not count as time without a heartbeat
            self._unheard -= elapsed
        elif sample.state == "D" or sample.faults - last.faults >= _FAULTS * elapsed:
            self._stuck = 0.0

    def _verdict(self, sample: Sample) -> str | None:
        bounds = self._bounds
        patience = bounds.silent_seconds if self._loaded or sample.state == "T" else bounds.step_seconds
        if self._silent + LOOK_SECONDS > patience:
            return f"was inactive for {self._silent:.0f} s"
        patience = bounds.gpu_wait_seconds if self._loaded else bounds.step_seconds
        if self._on_gpu and self._stuck + LOOK_SECONDS > patience:
            return f"was busy but made no progress for {self._stuck:.0f} s (its GPU may hang)"
        if self._loaded and self._unheard > bounds.step_seconds:
            return f"was busy with a single step for {self._unheard:.0f} s"
        return None


def take_sample(pid: int, ranks: Collection[int] = ()) -> Sample | None:
    """A sample of process `pid` and its descendants, from ``/proc``; None if the process has ended."""
    fields = stat(pid)
    if fields is None:
        return None
    own: list[list[str]] = [fields]
    helpers: list[list[str]] = []
    for child in _descendants(pid):
        below = stat(child)
        if below is not None:
            (own if child in ranks else helpers).append(below)
    # Fields 13 and 14 of a parent contain the CPU times of its children that have ended.
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
