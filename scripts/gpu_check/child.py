"""Runs a command with a limit on its time, and ends it with everything it started, gently first."""

from __future__ import annotations

import enum
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

GENTLE_SECONDS = 90  # a test run stops its servers meanwhile


class Cause(enum.Enum):
    """Why a command ended."""

    ITSELF = "by itself"
    TIME = "its time was up"
    INTERRUPT = "this process was interrupted"


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, and what it wrote to both outputs."""

    status: int
    output: str
    cause: Cause

    def go_on(self) -> None:
        """Raise KeyboardInterrupt if that is what ended it: to be called when what it brought has been read."""
        if self.cause is Cause.INTERRUPT:
            raise KeyboardInterrupt


def run(
    command: Sequence[str | Path],
    seconds: float,
    *,
    cwd: Path,
    environment: Mapping[str, str],
    gentle_seconds: float = GENTLE_SECONDS,
) -> Ended:
    """Run it to its end, as long as it may, or until this process is interrupted."""
    with tempfile.TemporaryFile() as output:
        # A session of its own: Ctrl-C in the terminal reaches it through `_end`, once, and not twice.
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        cause = Cause.ITSELF
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            cause = Cause.TIME
        except KeyboardInterrupt:
            cause = Cause.INTERRUPT
        finally:
            _end(process, gentle_seconds)
        output.seek(0)
        return Ended(process.returncode, output.read().decode(errors="replace"), cause)


def _end(process: subprocess.Popen[bytes], gentle_seconds: float) -> None:
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(gentle_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        for one in family:
            if one.is_running():
                one.kill()
        psutil.wait_procs(family, timeout=5)
