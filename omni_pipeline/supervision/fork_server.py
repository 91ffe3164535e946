"""The fork server: imports shared modules once, forks a worker for each order, and reports when a worker ends.

It is a program of its own (``python -m omni_pipeline.supervision.fork_server``) with one thread, driven over a socket
by `fork_server_client`. A forked worker has the imports at once and shares their memory pages. A worker on a GPU starts
in a fresh interpreter instead, since a CUDA context cannot be forked. So does a worker with environment variables of
its own, since libraries read them when they are imported. Every worker sees only the GPUs of its plan; a forked worker
sees none.

The fork server ends when the main process ends for any reason. It then ends the workers and removes the run directory.
If the fork server itself is killed, the kernel kills the workers. The fork server also ends processes that a worker has
started and left behind.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
from types import FrameType
from typing import NoReturn, TypeAlias

import msgspec
from msgspec import Struct

from omni_pipeline.kernels import toolchain
from omni_pipeline.os_process import adopt_orphans, children, die_with_parent, leave_stopping_to_parent, set_title
from omni_pipeline.supervision.output_relay import Relay, StandardError
from omni_pipeline.worker import process
from omni_pipeline.worker.process import Assignment

# Orders and reports are one packet each.
PACKET_BYTES = 128 * 1024

# The signal that the kernel sends if the main process ends while the fork server imports. Unlike SIGKILL, it leaves
# time to clean up.
ORPHANED = signal.SIGUSR1

# Maximum time to wait for the end of killed processes that a dead worker has left behind. The kernel may keep such a
# process, for example while a driver works for it or a debugger holds it.
BURIAL_SECONDS = 1.0

# Maximum length of the reason why a module could not be imported, so that the report fits into a packet.
REASON_CHARACTERS = 1000

# Libraries size their thread pools when they load, so these variables must be in the environment before the imports.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Launch(Struct, tag="launch"):
    """Order: start a worker process."""

    assignment: Assignment


class Kill(Struct, tag="kill"):
    """Order: kill a worker process, if it still runs."""

    pid: int


class Preloaded(Struct, tag="preloaded"):
    """Report: the shared modules are imported. `failed` gives the reason for each that could not be imported."""

    seconds: float
    failed: dict[str, str]


class Launched(Struct, tag="launched"):
    """Report: a worker process has started."""

    worker: str
    incarnation: int
    pid: int


class Exited(Struct, tag="exited"):
    """Report: a worker process has ended. `code` is its exit code, or minus the signal that ended it.

    `last_words` are the last lines that it wrote to its standard output and standard error.
    """

    worker: str
    incarnation: int
    code: int
    last_words: list[str]


Order: TypeAlias = Launch | Kill
Report: TypeAlias = Preloaded | Launched | Exited


class Options(Struct):
    """The fork server's options, which its command line holds as JSON.

    Attributes:
        control: Descriptor of the socket on which orders arrive.
        parent: Process id of the main process.
        run_dir: Directory to remove at the end.
        preload: Modules to import before the first fork.
    """

    control: int
    parent: int
    run_dir: str
    preload: list[str]


class _Child(Struct):
    """A running worker process."""

    pid: int
    pidfd: int
    assignment: Assignment
    relay: Relay


class ForkServer:
    """Starts, watches and ends worker processes."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._control = socket.socket(fileno=options.control)
        self._orders = msgspec.msgpack.Decoder(Order)
        self._output = StandardError()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._control, selectors.EVENT_READ, self._take_order)
        self._workers: list[_Child] = []
        self._hung_up = False  # whether the main process has ended, or has asked us to end
        self._own: set[int] = set()  # processes that imports have started, if any

    def serve(self) -> None:
        """Import, then carry out orders until the main process hangs up."""
        preloaded = _preload(self._options.preload)
        # From now on, the closed socket shows the end of the main process; the signal would only interrupt clean-up.
        signal.signal(ORPHANED, signal.SIG_IGN)
        self._own = set(children())
        self._report(preloaded)
        while not self._hung_up:
            for key, _ in self._selector.select():
                # The handler of an earlier event may have closed this descriptor, and a new one may have its number.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()

    def end(self) -> None:
        """Kill the workers that still run."""
        for child in self._workers:
            os.kill(child.pid, signal.SIGKILL)
        for child in self._workers:
            os.waitpid(child.pid, 0)
            child.relay.finish()
        self._workers.clear()
        self._bury_orphans()

    def _take_order(self) -> None:
        packet = self._control.recv(PACKET_BYTES)
        if not packet:
            self._hung_up = True
            return
        match self._orders.decode(packet):
            case Launch(assignment=assignment):
                self._launch(assignment)
            case Kill(pid=pid):
                self._kill(pid)

    def _launch(self, assignment: Assignment) -> None:
        plan, incarnation = assignment.plan, assignment.incarnation
        try:
            child = self._fork(assignment)
        except OSError as error:  # too many processes or descriptors: the other workers go on
            self._report(Exited(plan.name, incarnation, 1, [f"cannot start a process: {error}"]))
            return
        self._workers.append(child)
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._reap(child))
        self._selector.register(child.relay, selectors.EVENT_READ, lambda: self._pass_on(child.relay))
        self._report(Launched(plan.name, incarnation, child.pid))

    def _fork(self, assignment: Assignment) -> _Child:
        """Fork a worker.

        Raises:
            OSError: The system lacks resources. Nothing is left of the attempt.
        """
        parent, pid = os.getpid(), 0
        sys.stdout.flush()
        sys.stderr.flush()
        relay = Relay(self._output)
        try:
            pid = os.fork()
            if pid == 0:
                self._become(assignment, parent, relay)
            relay.parent_side()
            return _Child(pid, os.pidfd_open(pid), assignment, relay)
        except OSError:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            relay.close()
            raise

    def _become(self, assignment: Assignment, parent: int, relay: Relay) -> NoReturn:
        """In the child: become the worker. Exits without the fork server's clean-up, which is not the worker's task."""
        code = 1
        try:
            signal.signal(ORPHANED, signal.SIG_DFL)
            die_with_parent(parent, signal.SIGKILL)
            relay.attach()
            self._selector.close()
            self._control.close()
            for child in self._workers:
                os.close(child.pidfd)
                child.relay.close()
            if assignment.plan.fresh:
                _exec(assignment, parent)
            code = process.run(assignment, parent)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _kill(self, pid: int) -> None:
        if any(pid == child.pid for child in self._workers):
            os.kill(pid, signal.SIGKILL)

    def _pass_on(self, relay: Relay) -> None:
        if not relay.pass_on():
            self._selector.unregister(relay)

    def _reap(self, child: _Child) -> None:
        self._workers.remove(child)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        _, status = os.waitpid(child.pid, 0)
        self._bury_orphans()
        with contextlib.suppress(KeyError):  # the pipe was closed before the process ended
            self._selector.unregister(child.relay)
        child.relay.finish()
        assignment, code = child.assignment, os.waitstatus_to_exitcode(status)
        shutil.rmtree(assignment.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # it may never have been made
            os.unlink(assignment.address.removeprefix("ipc://"))
        self._report(Exited(assignment.plan.name, assignment.incarnation, code, child.relay.last_words()))

    def _bury_orphans(self) -> None:
        """End the processes that dead workers have started. They have become our children."""
        known = self._own.union(child.pid for child in self._workers)
        deadline = time.monotonic() + BURIAL_SECONDS
        while orphans := [pid for pid in children() if pid not in known]:
            if time.monotonic() > deadline:  # the end of the next worker is the next occasion
                self._output.write(f"processes {orphans} have been killed but do not end\n".encode())
                return
            for pid in orphans:
                with contextlib.suppress(PermissionError):  # it has taken on the rights of another user
                    os.kill(pid, signal.SIGKILL)
            if not any(os.waitpid(pid, os.WNOHANG)[0] for pid in orphans):
                time.sleep(0.001)

    def _report(self, report: Report) -> None:
        self._control.send(msgspec.msgpack.encode(report))


def _preload(modules: list[str]) -> Preloaded:
    begin = time.monotonic()
    failed = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            failed[module] = f"{type(error).__name__}: {error}"[:REASON_CHARACTERS]
    # Exclude the present objects from the workers' garbage collections, which would write to the shared memory pages.
    gc.collect()
    gc.freeze()
    return Preloaded(time.monotonic() - begin, failed)


def _exec(assignment: Assignment, parent: int) -> NoReturn:
    plan = assignment.plan
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(plan.threads))
    environment |= {"CUDA_VISIBLE_DEVICES": ",".join(plan.gpus)} | plan.environment
    if plan.gpus:
        environment = toolchain.prepared(environment)
    command = process.command(assignment, parent)
    os.execve(command[0], command, environment)


def main() -> None:
    """Entry point. Its one argument is `Options` as JSON."""
    options = msgspec.json.decode(sys.argv[1], type=Options)
    leave_stopping_to_parent()
    signal.signal(ORPHANED, _orphaned)
    set_title("fork server")
    adopt_orphans()
    server = ForkServer(options)
    code = 1
    try:
        die_with_parent(options.parent, ORPHANED)
        server.serve()
        code = 0
    except (SystemExit, BrokenPipeError, ConnectionResetError):
        code = 0  # the main process ended during the imports or during a report
    except Exception:
        traceback.print_exc()
    finally:
        server.end()
        if code == 0:  # after an unexpected error, the main process may still run and need the run directory
            shutil.rmtree(options.run_dir, ignore_errors=True)
        # A normal exit would first destroy all imported modules, which takes seconds.
        sys.stderr.flush()
        os._exit(code)


def _orphaned(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
