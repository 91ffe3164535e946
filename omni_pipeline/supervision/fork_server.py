"""The fork server imports shared modules once, forks a worker for each order, and reports when a worker ends.

The fork server is a separate program (``python -m omni_pipeline.supervision.fork_server``) with one thread.
`fork_server_client` controls it over a socket. A forked worker has the imported modules at once, and all forked workers
share the memory pages of these modules. A worker on a GPU starts in a fresh interpreter instead, because a CUDA context
cannot be forked. A worker with its own environment variables also starts in a fresh interpreter, because libraries read
the variables when they are imported. Every worker sees only the GPUs of its plan. A forked worker sees no GPU.

When the main process ends for any reason, the fork server ends the workers, removes the run directory, and ends itself.
If the fork server is killed, the kernel kills the workers. When a worker has ended, the fork server also ends the
processes that the worker has started.
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

# Maximum size of a packet, in bytes. Each order and each report is one packet.
PACKET_BYTES = 128 * 1024

# The signal that the kernel sends to the fork server if the main process ends during the imports. Unlike SIGKILL, this
# signal leaves time to clean up.
ORPHANED = signal.SIGUSR1

# When a worker has ended, the fork server kills the processes that the worker started. This is the maximum time, in
# seconds, to wait for the end of these processes. A killed process may end late, for example because of a driver or a
# debugger.
BURIAL_SECONDS = 1.0

# Maximum number of characters of the reason why a module could not be imported. With this limit, the report fits into a
# packet.
REASON_CHARACTERS = 1000

# Environment variables for the number of threads in libraries. Libraries create their thread pools when they are
# imported, so the variables must be set before the imports.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Launch(Struct, tag="launch"):
    """An order to start a worker process."""

    assignment: Assignment


class Kill(Struct, tag="kill"):
    """An order to kill a worker process, if it still runs."""

    pid: int


class Preloaded(Struct, tag="preloaded"):
    """A report that the shared modules are imported. `failed` has the reason for each module that could not be
    imported.
    """

    seconds: float
    failed: dict[str, str]


class Launched(Struct, tag="launched"):
    """A report that a worker process has started."""

    worker: str
    incarnation: int
    pid: int


class Exited(Struct, tag="exited"):
    """A report that a worker process has ended. `code` is the exit code of the process. If a signal ended the process,
    `code` is the negative number of the signal.

    `last_words` are the last lines that the process wrote to its standard output and standard error.
    """

    worker: str
    incarnation: int
    code: int
    last_words: list[str]


Order: TypeAlias = Launch | Kill
Report: TypeAlias = Preloaded | Launched | Exited


class Options(Struct):
    """The fork server's options. The command line of the fork server contains these options as JSON.

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
        self._hung_up = False  # whether the main process has ended, or has asked the fork server to end
        self._own: set[int] = set()  # ids of processes that the imports have started, if any

    def serve(self) -> None:
        """Import the shared modules, then carry out orders until the main process closes the connection."""
        preloaded = _preload(self._options.preload)
        # From now on, the loop below notices the end of the main process, because the end of the main process closes
        # the socket. The signal is not needed any more, and would interrupt the clean-up.
        signal.signal(ORPHANED, signal.SIG_IGN)
        self._own = set(children())
        self._report(preloaded)
        while not self._hung_up:
            for key, _ in self._selector.select():
                # The handler of an earlier event may have closed this descriptor. A new descriptor may then have the
                # same number.
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
        except OSError as error:  # for example, there are too many processes or descriptors; the other workers continue
            self._report(Exited(plan.name, incarnation, 1, [f"cannot start a process: {error}"]))
            return
        self._workers.append(child)
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._reap(child))
        self._selector.register(child.relay, selectors.EVENT_READ, lambda: self._pass_on(child.relay))
        self._report(Launched(plan.name, incarnation, child.pid))

    def _fork(self, assignment: Assignment) -> _Child:
        """Fork a worker.

        Raises:
            OSError: the system lacks resources. The failed attempt leaves no process and no open descriptor.
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
        """Called in the child: run the worker and exit. The exit skips the fork server's clean-up, because a worker
        must not run this clean-up.
        """
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
        with contextlib.suppress(OSError):  # the worker may have ended before it made the socket file
            os.unlink(assignment.address.removeprefix("ipc://"))
        self._report(Exited(assignment.plan.name, assignment.incarnation, code, child.relay.last_words()))

    def _bury_orphans(self) -> None:
        """End the processes that dead workers have started. These processes have become children of the fork server."""
        known = self._own.union(child.pid for child in self._workers)
        deadline = time.monotonic() + BURIAL_SECONDS
        while orphans := [pid for pid in children() if pid not in known]:
            if time.monotonic() > deadline:  # this function tries again when the next worker ends
                self._output.write(f"processes {orphans} have been killed but do not end\n".encode())
                return
            for pid in orphans:
                with contextlib.suppress(PermissionError):  # the process has switched to another user
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
    # Exclude all current objects from garbage collection in the workers, because garbage collection writes to the
    # shared memory pages.
    gc.collect()
    gc.freeze()
    return Preloaded(time.monotonic() - begin, failed)


def _exec(assignment: Assignment, parent: int) -> NoReturn:
    plan = assignment.plan
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(plan.threads or 1))
    environment |= {"CUDA_VISIBLE_DEVICES": ",".join(plan.gpus)} | plan.environment
    if plan.gpus:
        environment = toolchain.prepared(environment)
    command = process.command(assignment, parent)
    os.execve(command[0], command, environment)


def main() -> None:
    """Entry point of the program. The only command-line argument is `Options` as JSON."""
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
        code = 0  # this is no error: the main process ended during the imports or while a report was being sent
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
