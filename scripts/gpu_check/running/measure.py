"""Measures time and memory of work on a device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 1024**2


class Times(NamedTuple):
    """Milliseconds of the first run, and the median milliseconds of the later runs."""

    first: float
    steady: float


def wait(device: str) -> None:
    """Wait until the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], device: str) -> float:
    """Milliseconds of one run, from an idle device to an idle device."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return (time.perf_counter() - began) * 1e3


def times(work: Callable[[], object], device: str, runs: int) -> Times:
    """Time a first run and `runs` later runs."""
    first = milliseconds(work, device)
    rest = sorted(milliseconds(work, device) for _ in range(runs))
    return Times(round(first, 3), round(rest[len(rest) // 2], 3))


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """Peak of allocated bytes while `work` runs, without the bytes that were allocated before. `work` should have run
    once already.
    """
    wait(device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        wait(device)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def held_bytes(device: str) -> int:
    """Bytes that are in use at this moment. On a GPU, these are the bytes that all processes use. On a CPU, these are
    the bytes of RAM that this process uses.
    """
    gc.collect()
    if device == "cuda":
        wait(device)
        free, total = torch.cuda.mem_get_info()
        return total - free
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def mib(size: int) -> float:
    return round(size / MIB, 1)
