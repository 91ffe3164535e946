"""The main process's interface to the fork server: starts the fork server, sends orders to it, and reads its
reports.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from enum import Enum

import msgspec

from omni_pipeline.supervision import fork_server
from omni_pipeline.supervision.fork_server import (
    PACKET_BYTES,
    THREAD_VARIABLES,
    Kill,
    Launch,
    Options,
    Order,
    Preloaded,
    Report,
)
from omni_pipeline.worker.process import Assignment

# With these variables, no GPU is visible until the fork server sets the GPUs of a worker. CUDA numbers GPUs in the same
# way as the driver. Thread pools have one thread until a worker sets another number. Libraries do not use the network.
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    **dict.fromkeys(THREAD_VARIABLES, "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}

# Switch off warnings of libraries about devices and models that are not in use. An operator can set these variables to
# other values to see the warnings.
_QUIET = {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}


# The variable for the directory in which torch keeps compiled kernels. Torch's default is the temporary directory. But
# the server's temporary directory is removed after each run, and compiled kernels should be kept.
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"


class LauncherState(Enum):
    """The state of a fork server, according to its reports."""

    IMPORTING = "importing"
    READY = "ready"
    GONE = "gone"


class Launcher:
    """A running fork server. The constructor returns at once, while the fork server is still importing modules.

    The run directory is also the temporary directory of the fork server and the workers. So files that libraries leave
    in the temporary directory are removed after the run.

    The fork server ends when the thread that created the object ends. So create the object on a thread that runs as
    long as the service, such as the main thread.

    Args:
        run_dir: Directory that the fork server removes at its end.
        preload: Modules to import once for all workers.

    Attributes:
        state: The state of the fork server at the latest call of `reports`.
    """

    def __init__(self, run_dir: str, preload: tuple[str, ...]) -> None:
        self.state = LauncherState.IMPORTING
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        self._reports = msgspec.msgpack.Decoder(Report)
        options = Options(control=theirs.fileno(), parent=os.getpid(), run_dir=run_dir, preload=list(preload))
        compiled = {_COMPILED: os.path.join(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", fork_server.__name__, msgspec.json.encode(options).decode()],
                env=_QUIET | compiled | os.environ | _ENVIRONMENT | {"TMPDIR": run_dir},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """A file descriptor that is readable while reports wait to be read."""
        return self._control.fileno()

    def launch(self, assignment: Assignment) -> None:
        """Order the start of a worker. Does nothing if the fork server has ended. In this case, `state` is GONE."""
        self._order(Launch(assignment))

    def kill(self, pid: int) -> None:
        """Order the fork server to kill a worker process."""
        self._order(Kill(pid))

    def reports(self) -> list[Report]:
        """The reports since the last call."""
        reports: list[Report] = []
        while self.state is not LauncherState.GONE:
            try:
                packet = self._control.recv(PACKET_BYTES)
            except BlockingIOError:
                break
            except ConnectionResetError:
                packet = b""
            if not packet:
                self.state = LauncherState.GONE
                break
            report = self._reports.decode(packet)
            if isinstance(report, Preloaded):
                self.state = LauncherState.READY
            reports.append(report)
        return reports

    def hang_up(self) -> None:
        """Close the connection. The fork server then kills the workers that still run, and ends. `state` is GONE when
        the fork server has ended.
        """
        self._control.shutdown(socket.SHUT_WR)

    def kill_all(self) -> None:
        """Kill the fork server now. The kernel then kills every worker."""
        self._process.kill()

    def close(self) -> None:
        """Kill the fork server and wait for its end. No other method may be called afterwards."""
        self._process.kill()
        self._process.wait()
        self._control.close()

    def _order(self, order: Order) -> None:
        try:
            self._control.send(msgspec.msgpack.encode(order))
        except BlockingIOError:  # dozens of orders are waiting, so the fork server hangs and has to be replaced
            self.kill_all()
        except (BrokenPipeError, ConnectionResetError):
            return
