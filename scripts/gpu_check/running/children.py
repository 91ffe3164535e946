"""Runs each check in a separate process with a time limit, so that a hang or a crash affects only that check."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from gpu_check.running.finding import Finding

# A function that starts a process as the leader of a new session, and returns its id. Its arguments are the descriptors
# for the standard output and the standard error of the process.
Start: TypeAlias = Callable[[int, int], int]

_SHOWN = 1500  # characters of a child's stderr that are kept
_REAP_SECONDS = 5.0  # the wait is limited, because a process that waits for a driver may never end
_POLL_SECONDS = 0.02


def forked(work: Callable[[], object]) -> Start:
    """A `Start` that does `work` in a fork of this process. The imports of this process take long, and the fork does
    not repeat them.

    This process must not have used CUDA or started threads.
    """

    def start(output: int, errors: int) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(errors, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            work()
            status = 0
        except BaseException:  # the fork must not continue the parent's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    return start


def spawned(command: Sequence[str], environment: Mapping[str, str]) -> Start:
    """A `Start` that runs `command` as a new program."""

    def start(output: int, errors: int) -> int:
        # Not a Popen object: only the id is needed, and Popen warns if its process still runs when the object is
        # garbage collected.
        return os.posix_spawn(
            command[0], list(command), environment, setsid=True,
            file_actions=[(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, errors, 2)],
        )  # fmt: skip

    return start


def findings(name: str, start: Start, seconds: float) -> Iterator[Finding]:
    """Yields the findings of a child while the child prints them, and a failing finding if the child failed.

    Args:
        name: Name of the check, for the failing finding.
        start: Starts the child, which prints findings and ends with exit status 0.
        seconds: Time after which the child and all its children are killed.
    """
    began = time.monotonic()
    until, count = began + seconds, 0
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        output, inner = os.pipe()
        child = start(inner, errors.fileno())
        os.close(inner)
        try:
            for line in _lines(output, until):
                finding = Finding.read(line)
                if finding is not None:
                    count += 1
                    yield finding
            problem = _ending(_wait(child, until))
        finally:
            _kill(child)
            os.close(output)
        if problem is None and not count:
            problem = "it printed no finding"
        if problem is not None:
            errors.seek(0)
            took = round(time.monotonic() - began, 1)
            yield Finding(name, False, {"problem": problem, "seconds": took, "stderr": errors.read()[-_SHOWN:]})


def _lines(stream: int, until: float) -> Iterator[str]:
    """Lines of a pipe, until it is closed or the time is up."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0 and selector.select(left):
            data = os.read(stream, 65536)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)


def _wait(child: int, until: float) -> int | None:
    """The process's exit status, negative for a signal; None if it has not ended in time."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(_POLL_SECONDS)


def _ending(status: int | None) -> str | None:
    """The reason why this exit status counts as a failure, or None."""
    if status is None:
        return "its time was over"
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it ended with {status}" if status else None


def _kill(child: int) -> None:
    """End the child and all its children; some may be left even after the child has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # the child's exit status has been read
        _wait(child, time.monotonic() + _REAP_SECONDS)
