"""Runs a command with a time limit, and ends the command with all its children: first by SIGINT, then by SIGKILL."""

from __future__ import annotations

import enum
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

GENTLE_SECONDS = 90  # seconds in which a test run can stop its servers


class Cause(enum.Enum):
    """The reason why a command ended."""

    ITSELF = "by itself"
    TIME = "its time was up"
    INTERRUPT = "this process was interrupted"


@dataclass(frozen=True)
class ChildEnd:
    """The result of a command: its exit status, its output on both streams, and the cause of its end."""

    status: int
    output: str
    cause: Cause

    def go_on(self) -> None:
        """Raise KeyboardInterrupt if an interrupt ended the command. Call this after the command's results have been
        read.
        """
        if self.cause is Cause.INTERRUPT:
            raise KeyboardInterrupt


def run(
    command: Sequence[str | Path],
    seconds: float,
    *,
    cwd: Path,
    environment: Mapping[str, str],
    gentle_seconds: float = GENTLE_SECONDS,
) -> ChildEnd:
    """Run the command until it ends, its time is up, or this process is interrupted."""
    with tempfile.TemporaryFile() as output:
        # A separate session, so that Ctrl-C in the terminal reaches the command only once, through `_end`.
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
        return ChildEnd(process.returncode, output.read().decode(errors="replace"), cause)


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
