"""Reads the total and the available memory of the machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int | None:
    """Number of bytes of RAM that this process may still use: the smaller of the available RAM of the system and the
    available RAM of the control group. None if unknown.

    Args:
        root: The directory that contains ``proc`` and ``sys``.
    """
    known = [free for free in (_system_free(root), _group_free(root)) if free is not None]
    return min(known, default=None)


def total_bytes(root: Path = Path("/")) -> int | None:
    """Number of bytes of RAM of the system, or the limit of the control group if the limit is smaller; None if unknown.

    Args:
        root: The directory that contains ``proc`` and ``sys``.
    """
    known = []
    with suppress(OSError, KeyError):
        known.append(_fields(root / "proc/meminfo")["MemTotal:"] * 1024)
    with suppress(OSError, ValueError):  # there is no control group, or its limit is the word "max"
        known.append(int((root / "sys/fs/cgroup/memory.max").read_text()))
    return min(known, default=None)


def _system_free(root: Path) -> int | None:
    try:
        return _fields(root / "proc/meminfo")["MemAvailable:"] * 1024
    except (OSError, KeyError):
        return None


def _group_free(root: Path) -> int | None:
    group = root / "sys/fs/cgroup"
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        # The page cache counts as used, but the system frees it on demand.
        used -= _fields(group / "memory.stat").get("inactive_file", 0)
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - used)


def _fields(path: Path) -> dict[str, int]:
    """The numbers in a file, keyed by name. Each line of the file contains a name and a number."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
