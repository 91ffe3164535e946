"""Detects the number of CPU cores and the instructions that this process may use, without importing torch."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

# The instruction sets with which torch multiplies bfloat16 faster than float32, as Linux names them.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


class Cpu(Struct, frozen=True):
    """The CPU, as far as this process may use it.

    Attributes:
        cores: Number of cores that the process may use: the smaller of the limits of its affinity mask and its control
            group.
        bfloat16: Whether the CPU multiplies bfloat16 in hardware.
    """

    cores: int = 1
    bfloat16: bool = False


def detect(root: Path = Path("/")) -> Cpu:
    """The CPU of this machine.

    Args:
        root: The directory that contains ``proc`` and ``sys``.
    """
    cores = max(1, min(available_cores(), _group_cores(root)))
    return Cpu(cores=cores, bfloat16=bool(_BFLOAT16 & _instructions(root)))


def available_cores() -> int:
    """Number of cores in the affinity mask of this process, or of all cores on systems without affinity masks."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _group_cores(root: Path) -> int:
    """Number of whole cores whose time the control group may use; a huge number if no limit is known."""
    with suppress(OSError, ValueError):
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return math.floor(int(quota) / int(period))
    return 1 << 16


def _instructions(root: Path) -> frozenset[str]:
    with suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            name, _, words = line.partition(":")
            if name.strip() == "flags":
                return frozenset(words.split())
    return frozenset()
