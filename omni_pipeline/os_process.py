"""Functions for processes of the operating system: signals, the death of a parent, titles, resource usage and free
ports.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

from msgspec import Struct

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Ask the kernel to send signal `number` to this process when its parent ends for any reason.

    The kernel watches the *thread* that started this process, so that thread must live as long as the service.
    The setting survives ``exec`` but not ``fork``: in a chain of forks, every process has to call this.

    Args:
        parent: Process id that the parent had when it started this process. If this parent has already ended,
            the signal is sent now.
    """
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> list[int]:
    """Process ids of this process's children. Call this function only in a process with a single thread."""
    return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def leave_stopping_to_parent() -> None:
    """Ignore SIGINT and SIGTERM.

    A terminal or a service manager sends these signals to all processes of the group at once. The main process then
    finishes its requests. It needs the workers for that, and asks the workers to exit afterwards.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def set_title(title: str) -> None:
    """Show `title` in process listings, if the package for setting titles is installed."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(f"sgl-omni: {title}")


class ProcessUsage(Struct):
    """The resources that a process uses: its current memory, including shared pages, and the CPU time that it has used
    in total.
    """

    resident_bytes: int
    cpu_seconds: float


def stat(pid: int) -> list[str] | None:
    """The fields of ``/proc/PID/stat``, beginning with the state; None if the process has ended or the system has no
    ``/proc``.
    """
    try:
        # The process's name, in parentheses, may contain spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def usage(pid: int) -> ProcessUsage | None:
    """Resources that process `pid` uses; None if the process has ended or the system has no ``/proc``."""
    fields = stat(pid)
    if fields is None:
        return None
    ticks = int(fields[11]) + int(fields[12])  # the fields utime and stime
    return ProcessUsage(int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), ticks / os.sysconf("SC_CLK_TCK"))


def free_port() -> int:
    """A TCP port of this machine that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
