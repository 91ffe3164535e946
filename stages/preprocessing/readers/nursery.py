"""Forks reader processes from a process that never has a client's data in memory.

A reader that is forked from the worker itself would keep a copy of the worker's memory. The copy would contain media of
other requests, even after the worker has released these media. The copy would also contain the GPU state of the
worker's other stages. So the worker forks one process, the nursery, before any stage computes. The nursery forks each
reader, and reports how each reader ended.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NoReturn

from msgspec import Struct

from omni_pipeline.os_process import die_with_parent, set_title

# An order is one packet: FORK with the reader's end of its socket, or KILL with a process id.
_FORK, _KILL = b"f", b"k"
_PID = struct.Struct("=i")

# A report is one packet: the process id (0 if the fork failed), whether the process has ended, and its wait status.
_REPORT = struct.Struct("=i?i")


class Born(Struct, frozen=True):
    """The answer to the oldest unanswered order: a reader has been forked. `pid` is 0 if the fork failed."""

    pid: int


class Ended(Struct, frozen=True):
    """A reader has ended. `how` is a text with the reader's signal or exit code."""

    pid: int
    how: str


class NurseryLost(Exception):
    """The process that forks readers has ended."""


class Nursery:
    """The worker's connection to the process that forks readers.

    Args:
        run: The main function of each reader; it never returns. Its argument is the reader's end of the socket to the
            worker.
    """

    def __init__(self, run: Callable[[socket.socket], NoReturn]) -> None:
        self._control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            self._control.close()
            _be_nursery(its, run, parent)
        its.close()

    def fileno(self) -> int:
        """A descriptor that is readable when there are reports."""
        return self._control.fileno()

    def fork(self) -> socket.socket:
        """Order the process to fork another reader; the report `Born` will follow. Returns the worker's end of the
        socket to this reader.
        """
        ours, its = socket.socketpair()
        try:
            socket.send_fds(self._control, [_FORK], [its.fileno()])
        except ConnectionError as error:
            raise NurseryLost from error
        finally:
            its.close()
        return ours

    def kill(self, pid: int) -> None:
        """Order the process to kill the reader `pid`. When the reader has ended, `reports` yields an `Ended`."""
        with contextlib.suppress(ConnectionError):  # if the nursery has ended, so have its readers
            self._control.send(_KILL + _PID.pack(pid))

    def reports(self) -> Iterator[Born | Ended]:
        """All reports since the last call. Raises NurseryLost if the process has ended."""
        while True:
            try:
                packet = self._control.recv(_REPORT.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                packet = b""
            if not packet:
                raise NurseryLost
            pid, ended, status = _REPORT.unpack(packet)
            yield Ended(pid, _in_words(status)) if ended else Born(pid)

    def close(self) -> None:
        """End the process. Before the process ends, it kills all of its readers."""
        if not self._pid:
            return
        self._control.close()
        os.waitpid(self._pid, 0)
        self._pid = 0


def _in_words(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _be_nursery(control: socket.socket, run: Callable[[socket.socket], NoReturn], parent: int) -> NoReturn:
    try:
        die_with_parent(parent, signal.SIGKILL)
        set_title("preprocessing: readers")
        gc.freeze()  # a garbage collection in a reader would write to all pages that readers share
        _serve(control, run)
    finally:
        os._exit(0)


def _serve(control: socket.socket, run: Callable[[socket.socket], NoReturn]) -> None:
    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    # Python writes a signal to the wake-up descriptor only if the signal has a handler.
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    children: set[int] = set()
    try:
        while True:
            readable, _, _ = select.select([control, woken], [], [])
            if woken in readable:
                woken.recv(4096)
                _report_ended(control, children)
            if control in readable:
                order, descriptors, _, _ = socket.recv_fds(control, 16, 1)
                if not order:
                    return
                if order[:1] == _KILL:
                    (pid,) = _PID.unpack(order[1:])
                    if pid in children:
                        os.kill(pid, signal.SIGKILL)
                    continue
                pid = _fork(socket.socket(fileno=descriptors[0]), run, (control, woken, waker))
                if pid:
                    children.add(pid)
                control.send(_REPORT.pack(pid, False, 0))
    except ConnectionError:
        return
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


def _report_ended(control: socket.socket, children: set[int]) -> None:
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.discard(pid)
            control.send(_REPORT.pack(pid, True, status))


def _fork(its: socket.socket, run: Callable[[socket.socket], NoReturn], inherited: tuple[socket.socket, ...]) -> int:
    """Fork a reader. Returns its process id, or 0 if the system refuses."""
    parent = os.getpid()
    with its:
        try:
            pid = os.fork()
        except OSError:
            return 0
        if pid:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in inherited:
                end.close()
            die_with_parent(parent, signal.SIGKILL)
            run(its)
        finally:
            os._exit(1)
