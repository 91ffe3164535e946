"""Distinguishes a worker that hangs from a worker that is busy with a long step.

A worker sends heartbeats between steps. When heartbeats do not arrive, this module examines the process from outside. A
worker counts as busy as long as its process, or a descendant of its process, uses the CPU or waits for a disk.
Otherwise a signal has stopped the worker, or the worker waits for an event that will never happen. Even a busy worker
counts as hung if a single step takes too long.

A worker that waits for its GPU spins. So the worker looks busy even when the GPU hangs, or when the ranks of a stage
wait for each other. For this reason, CPU time of the process and the ranks of a worker on a GPU counts as a sign of
life only for `gpu_wait_seconds`, which is normally much shorter than `step_seconds`. Three things prove progress: the
worker's pulse (see `worker.pulse`), processes that compile kernels for the worker, and memory that the worker
allocates. Memory counts because compilers inside the worker allocate memory. While one worker compiles, other workers
on GPUs may wait for the same kernels without any sign of life.

Each look adds only a bounded time, because time in which the whole service was stopped (by Ctrl-Z, or because the
machine was suspended) is not a sign of a hang.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from omni_pipeline.os_process import stat

# Number of seconds between two looks at a worker, and the maximum number of seconds that a look may add to the counts.
LOOK_SECONDS = 1.0
_MOST_SECONDS = 2 * LOOK_SECONDS

# Heartbeats come every second. A process is examined only if its latest heartbeat is older than this number of seconds.
_LATE_SECONDS = 2.0

# A process that uses less than this share of a CPU core is idle. Even in an idle process, the I/O thread uses a little
# CPU time when messages arrive.
_BUSY_SHARE = 0.02

# A process with this many page faults a second allocates memory. Compilers cause thousands of page faults a second. A
# thread that spins causes no page faults.
_FAULTS = 100

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class Bounds(Struct, frozen=True):
    """Time limits after which a process counts as hung.

    Attributes:
        silent_seconds: Maximum time without a heartbeat and without computation, for a process that has finished
            loading. If a signal has stopped the process, this limit also holds during loading.
        step_seconds: Maximum time for which a process that has finished loading is busy without a heartbeat. Also the
            maximum time without computation for a process that is still loading.
        gpu_wait_seconds: Maximum time for which a process on a GPU is busy without progress after it has finished
            loading. During loading, `step_seconds` is the limit instead.
    """

    silent_seconds: float
    step_seconds: float
    gpu_wait_seconds: float


class Sample(Struct, frozen=True):
    """The state of a process at one moment.

    Attributes:
        state: The letter that ``/proc`` gives for the state of the process.
        cpu_seconds: CPU time of the process and of all its descendants.
        helper_seconds: The part of `cpu_seconds` that belongs to descendants other than ranks.
        faults: Number of page faults of the process and its ranks.
    """

    state: str
    cpu_seconds: float
    helper_seconds: float = 0.0
    faults: int = 0


class Vitals:
    """The signs of life of one process.

    Args:
        pid: Id of the process.
        bounds: Time limits after which the process counts as hung.
        sample: Function that takes a sample of the process and its ranks.
        on_gpu: Whether the process uses a GPU, and so may spin while it waits.

    Attributes:
        compiles: Whether, at the last look, kernels were being compiled for the process.
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
            elapsed: Seconds since the last look.
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
            # time for compiling does not count as time without a heartbeat, because compilers end by themselves
            self._unheard -= elapsed
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
