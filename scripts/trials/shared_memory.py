"""Finds the files in /dev/shm that belong to given processes, because other programs create files there too."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

ROOT = Path("/dev/shm")


def shared_memory(processes: Iterable[psutil.Process]) -> set[Path]:
    """The files in /dev/shm that these processes have open or mapped. Processes that have ended are skipped."""
    found: set[Path] = set()
    for process in processes:
        proc = Path("/proc") / str(process.pid)
        try:
            maps = (proc / "maps").read_text().splitlines()
            handles = list((proc / "fd").iterdir())
        except OSError:
            continue
        found |= {Path(line.split(maxsplit=5)[5]) for line in maps if f"{ROOT}/" in line}
        for handle in handles:
            try:
                found.add(Path(os.readlink(handle)))
            except OSError:  # the file has been closed since it was listed
                continue
    return {path for path in found if path.is_relative_to(ROOT)}
