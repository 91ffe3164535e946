"""Functions for processes of the operating system: signals, the end of a parent process, titles, resource usage and
free ports.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import sys
from pathlib import Path

from msgspec import Struct

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_KERNEL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
# `free_port` chooses among this number of ports below the kernel's range, and tries at most `_TRIES` of them.
_PORTS = 16384
_TRIES = 100


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Ask the kernel to send signal `number` to this process when its parent ends for any reason.

    The kernel watches the *thread* that started this process, so that thread must run as long as the service. The
    setting remains after ``exec``, but a forked child does not inherit it. So in a chain of forks, every process has to
    call this function.

    Args:
        parent: Process id that the parent had when it started this process. If this parent has already ended,
            the signal is sent now.
    """
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Make this process the new parent of every descendant whose own parent ends."""
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
    finishes its requests. The main process needs the workers for these requests, so the workers must not end at the
    signal. The main process asks them to exit afterwards.
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


def lower_priority(pid: int, niceness: int) -> None:
    """Set the niceness of process `pid`, see `nice(2)`. Without privileges, a process can only be given a larger
    niceness. Does nothing if the process has ended.
    """
    with contextlib.suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, niceness)


def free_port() -> int:
    """A TCP port of this machine that no process uses now.

    The port is below the range from which the kernel chooses ports. So until the caller uses the port, no outgoing
    connection and no server without a fixed port gets it. The port is random, so two processes that call this function
    at the same time get different ports.
    """
    first = int(_KERNEL_PORTS.read_text().split()[0]) if _KERNEL_PORTS.exists() else 0
    choices = range(max(first - _PORTS, 1024), first)
    for port in random.SystemRandom().sample(choices, min(len(choices), _TRIES)):
        if _is_free(port):
            return port
    return _bound_to(0)


def _is_free(port: int) -> bool:
    try:
        return _bound_to(port) == port
    except OSError:
        return False


def _bound_to(port: int) -> int:
    """Bind a socket to `port` on all addresses, and close it again. If `port` is 0, the system chooses a free port.
    Returns the port to which the socket was bound.
    """
    with socket.socket() as probe:
        probe.bind(("", port))
        return int(probe.getsockname()[1])
