"""Signs of life: tells a worker that hangs from one that is busy with a long step.

A worker beats between steps. One whose beats fail to come is looked at from outside: as long as it, or a process under
it, uses the CPU or waits for a disk, it is at work. One that does neither has been stopped, or waits for something
that will never come. And no single step may last for ever, however busy.

A worker on a GPU that waits for it spins, and so is busy also when the GPU hangs, or the ranks of a stage wait for each
other. There, CPU use of its own, and of its ranks, proves nothing beyond a shorter time. What proves that it gets on:
its pulse (see `pulse`), processes that compile kernels for it, and memory that it takes, as compilers within it do.
While one worker compiles, others on GPUs may need the same kernels, and wait for them without a sign.

Time is counted in looks, not by the clock: when all of us were stopped together (Ctrl-Z, a suspended machine), that is
no sign of death.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
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

# Page faults a second by which one takes memory. Compilers come to thousands, one that spins to none.
_FAULTS = 100

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class Bounds(Struct, frozen=True):
    """When a process counts as hung.

    Attributes:
        silent_seconds: Neither beating nor computing, once it has loaded; also for one that is stopped by a signal.
        step_seconds: Busy without a beat, once it has loaded; or without computing while it loads.
        gpu_wait_seconds: On a GPU, busy without getting on, once it has loaded; while it loads, `step_seconds`.
    """

    silent_seconds: float
    step_seconds: float
    gpu_wait_seconds: float


class Sample(Struct, frozen=True):
    """A process at one moment.

    Attributes:
        state: A letter, as in ``/proc``.
        cpu_seconds: Of it and all under it.
        helper_seconds: The part of all under it that are no ranks.
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
        sample: How it and its ranks are looked at.
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
        """It has said that it is ready, or alive."""
        self._loaded = True
        self._unheard = self._silent = self._stuck = 0.0
        self._last = None
        self.compiles = False

    def pulse(self) -> None:
        """It has said that it gets on."""
        self._silent = self._stuck = 0.0

    def look(self, elapsed: float, ranks: Collection[int] = (), *, others_compile: bool = False) -> str | None:
        """Look at it again; what is wrong, once a bound is about to be passed.

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
            return None  # it has ended, and the news is under way
        last, self._last = self._last, sample
        if last is None:
            return None
        if sample.state == "D" or sample.cpu_seconds - last.cpu_seconds >= _BUSY_SHARE * elapsed:
            self._silent = 0.0
        else:
            self._stuck -= elapsed  # silence, which is another matter
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
            return f"was busy but did not get on for {self._stuck:.0f} s, as when its GPU hangs"
        if self._loaded and self._unheard > bounds.step_seconds:
            return f"was busy with a single step for {self._unheard:.0f} s"
        return None


def take_sample(pid: int, ranks: Collection[int] = ()) -> Sample | None:
    """What ``/proc`` says of process `pid` and those under it; None when it is gone."""
    fields = stat(pid)
    if fields is None:
        return None
    own: list[list[str]] = [fields]
    helpers: list[list[str]] = []
    for child in _descendants(pid):
        below = stat(child)
        if below is not None:
            (own if child in ranks else helpers).append(below)
    # Children that have ended are in their parents' figures.
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
