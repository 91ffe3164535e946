"""The fork server stays alive and responsive, whatever a worker does or writes, and whatever the worker's child
processes do.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import resource
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.supervision.fork_server import Exited, Launched, Preloaded, Report
from omni_pipeline.supervision.fork_server_client import Launcher, LauncherState
from omni_pipeline.wire.transport import MAIN, endpoint
from omni_pipeline.worker.process import Assignment
from tests.omni_pipeline.echo_stages import ECHO, ECHO_PATH
from tests.omni_pipeline.sessions import SECONDS, echo_config

# A shell command that writes one line when the worker that started it has ended.
SPEAKS_AFTER_THE_END = (
    'worker=$PPID; while [ "$(cut -d" " -f4 /proc/$$/stat)" = $worker ]; do sleep 0.01; done; '
    "echo left; exec sleep 1000"
)


class Fork:
    """A fork server with echo workers, and its reports in order."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = tempfile.mkdtemp(dir=run_dir)
        self.launcher = Launcher(self.run_dir, ())
        self.reports: list[Report] = []
        self.until(Preloaded)

    def until(self, kind: type[Report], name: str | None = None) -> Any:
        """Waits for the next report of this class about this worker, and returns the report."""
        end = time.monotonic() + SECONDS
        while True:
            for report in self.reports:
                if isinstance(report, kind) and name in (None, getattr(report, "worker", None)):
                    self.reports.remove(report)
                    return report
            assert self.launcher.state is not LauncherState.GONE, "the fork server has ended"
            assert time.monotonic() < end, f"no {kind.__name__} of {name}"
            select.select([self.launcher], [], [], 0.1)
            self.reports += self.launcher.reports()

    def order(self, name: str, incarnation: int = 0, **options: str) -> None:
        """Order the start of a worker. The worker waits for messages that never come."""
        pipeline = resolve(echo_config(**{name: options}))
        plan = next(plan for plan in pipeline.workers if plan.name == name)
        addresses = {stage: {0: endpoint(self.run_dir, stage, 0)} for stage in ECHO.stage_names}
        home, level = endpoint(self.run_dir, MAIN, 0), pipeline.log_level
        self.launcher.launch(
            Assignment(plan, incarnation, ECHO_PATH, "no/checkpoint", self.run_dir, addresses, home, 0, level, "text")
        )

    def launch(self, name: str, incarnation: int = 0, **options: str) -> int:
        """Start a worker. Returns its process id."""
        self.order(name, incarnation, **options)
        pid: int = self.until(Launched, name).pid
        return pid

    def lose(self, name: str, pid: int) -> Exited:
        """Order the fork server to kill a worker. Returns the report of the worker's end."""
        self.launcher.kill(pid)
        report: Exited = self.until(Exited, name)
        assert report.code == -signal.SIGKILL
        return report

    def close(self) -> None:
        """End the fork server, and remove the files that it would have removed at a normal end."""
        self.launcher.close()
        shutil.rmtree(self.run_dir, ignore_errors=True)

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """Stop the fork server during the block. Events wait during this time, and the fork server then finds all of
        them in one round.
        """
        os.kill(self.launcher.pid, signal.SIGSTOP)
        until(lambda: psutil.Process(self.launcher.pid).status() == psutil.STATUS_STOPPED)
        yield
        os.kill(self.launcher.pid, signal.SIGCONT)


@pytest.fixture
def fork(run_root: Path) -> Iterator[Fork]:
    fork = Fork(run_root)
    yield fork
    fork.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def helper(pid: int) -> psutil.Process:
    """Waits until a worker has started a process, and returns this process."""
    until(lambda: bool(psutil.Process(pid).children()))
    return psutil.Process(pid).children()[0]


def end_and_let_speak(pid: int) -> None:
    """Kill a worker directly, and wait until the process that it has started has written its line."""
    left = helper(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: left.name() == "sleep")


def test_output_of_a_grandchild_after_the_end_of_its_worker(fork: Fork) -> None:
    """The fork server finds the end of the worker and the late output in one round. It handles the end first, so the
    pipe is already closed when it handles the output.
    """
    other = fork.launch("join")
    pid = fork.launch("shout", spawn=SPEAKS_AFTER_THE_END)
    with fork.asleep():
        end_and_let_speak(pid)
    assert fork.until(Exited, "shout").last_words == ["left"]
    fork.lose("join", other)


def test_a_late_event_is_not_taken_for_one_of_the_next_worker(fork: Fork) -> None:
    """In one round, the fork server finds three events: a worker has ended, a new worker is ordered, and the old
    worker's last output has arrived. The new worker gets the same descriptors as the old worker.
    """
    pid = fork.launch("shout", spawn=SPEAKS_AFTER_THE_END)
    left = helper(pid)
    with fork.asleep():
        os.kill(left.pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        fork.order("shout", 1)
        os.kill(left.pid, signal.SIGCONT)
        until(lambda: left.name() == "sleep")
    assert fork.until(Exited, "shout").last_words == ["left"]
    fork.lose("shout", fork.until(Launched, "shout").pid)


def test_workers_that_end_together_with_all_their_grandchildren(fork: Fork) -> None:
    pids = {name: fork.launch(name, spawn=SPEAKS_AFTER_THE_END) for name in ECHO.stage_names}
    left = [helper(pid) for pid in pids.values()]
    with fork.asleep():
        for pid in pids.values():
            end_and_let_speak(pid)
    for name in pids:
        assert fork.until(Exited, name).last_words == ["left"]
    assert not any(process.is_running() for process in left)
    fork.lose("join", fork.launch("join", 1))


@contextlib.contextmanager
def standard_error(descriptor: int) -> Iterator[None]:
    """Processes that are started inside this context have `descriptor` as their standard error."""
    own = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)


def test_output_without_end_occupies_nobody(run_root: Path) -> None:
    with open(os.devnull, "wb") as sink, standard_error(sink.fileno()):
        fork = Fork(run_root)
    try:
        loud = fork.launch("shout", spawn="exec cat /dev/zero")
        helper(loud)
        for incarnation in range(3):
            fork.lose("join", fork.launch("join", incarnation))
        fork.lose("shout", loud)
    finally:
        fork.close()


def test_a_reader_of_the_log_that_stops_reading_stops_nobody(run_root: Path) -> None:
    reader, writer = os.pipe()
    with standard_error(writer):
        fork = Fork(run_root)
    os.close(writer)
    try:
        # The output has 600 kB, but the pipe holds 64 KiB.
        loud = fork.launch("shout", spawn="seq 100000; exec sleep 1000")
        left = helper(loud)
        until(lambda: left.name() == "sleep")
        fork.lose("join", fork.launch("join"))
        shown = b""
        while select.select([reader], [], [], 0)[0]:
            shown += os.read(reader, 1 << 16)
        assert fork.lose("shout", loud).last_words[-1] == "100000"
        assert b"100000" not in shown
        fork.launch("split", spawn="echo again; exec sleep 1000")
        while b"again" not in shown:
            assert select.select([reader], [], [], SECONDS)[0]
            shown += os.read(reader, 1 << 16)
        assert b"bytes of the workers' output were dropped, because nobody read them]\nagain" in shown
    finally:
        fork.close()
        os.close(reader)


def test_a_worker_that_cannot_be_started_is_reported_and_the_others_go_on(fork: Fork) -> None:
    other = fork.launch("join")
    used = {int(name) for name in os.listdir(f"/proc/{fork.launcher.pid}/fd")}
    free = next(number for number in itertools.count() if number not in used)
    # the pipe needs two descriptors, but none or only one is left
    for spare in range(2):
        resource.prlimit(fork.launcher.pid, resource.RLIMIT_NOFILE, (free + spare, 4096))
        fork.order("shout")
        report = fork.until(Exited, "shout")
        assert report.code == 1
        assert "cannot start a process: [Errno 24]" in report.last_words[0]
        assert psutil.Process(fork.launcher.pid).num_fds() == len(used)
        assert [child.pid for child in psutil.Process(fork.launcher.pid).children()] == [other]
    resource.prlimit(fork.launcher.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    fork.lose("shout", fork.launch("shout", 1))
    fork.lose("join", other)


def test_a_process_that_cannot_be_buried_does_not_stop_the_fork_server(fork: Fork) -> None:
    """While a debugger is attached to a dead process, the parent process cannot remove it with `waitpid`."""
    pid = fork.launch("shout", spawn="exec sleep 1000")
    left = helper(pid)
    until(lambda: left.name() == "sleep")
    seize, detach = 0x4206, 17
    if ctypes.CDLL(None).ptrace(seize, left.pid, None, None) != 0:
        pytest.skip("this machine allows no debugger")
    try:
        fork.lose("shout", pid)
        other = fork.launch("join")
        assert left.status() == psutil.STATUS_ZOMBIE
    finally:
        ctypes.CDLL(None).ptrace(detach, left.pid, None, None)
        os.waitpid(left.pid, os.WNOHANG | 0x40000000)
    fork.lose("join", other)
    until(lambda: not left.is_running())


def test_a_fork_server_that_takes_no_orders_is_ended(fork: Fork) -> None:
    os.kill(fork.launcher.pid, signal.SIGSTOP)
    for pid in range(100_000):
        fork.launcher.kill(-pid)
    until(lambda: not fork.launcher.reports() and fork.launcher.state is LauncherState.GONE)
