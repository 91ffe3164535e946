"""Runs `sgl-omni serve` as a process: starts the server, waits until it serves, sends it requests, and ends it."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

from omni_pipeline.os_process import die_with_parent, free_port

PROGRAM = (sys.executable, "-m", "omni_pipeline.cli")
START_SECONDS = 600.0
STOP_SECONDS = 30.0


class ServerProcess:
    """One server with its workers, on its own port. This class is a context manager: it starts the server at the
    beginning of the block, and ends the server whenever the block ends.

    Args:
        arguments: Command-line arguments of ``serve``, without the port.
        log: File for the server's output.
        port: Port on which the server listens; by default a free one.
        program: The command before ``serve``.
        directory: The server's working directory; by default the working directory of this process.
        environment: Environment variables for the server. The server also gets the variables of this process. If a
            variable is in both, the server gets the value from `environment`.
        with_parent: Whether the server also ends when this process dies.

    Attributes:
        port: Port on which the server listens.
        url: Address of the server.
        process: The main process, once it has been started.
    """

    process: subprocess.Popen[bytes] | None = None

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        port: int | None = None,
        program: Sequence[str] = PROGRAM,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        with_parent: bool = False,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._command = [*program, "serve", "--port", str(self.port), *arguments]
        self._directory = directory
        self._environment = environment or {}
        self._with_parent = with_parent

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server, without waiting until it serves."""
        bound = functools.partial(die_with_parent, os.getpid(), signal.SIGTERM)
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env={**os.environ, **self._environment},
                preexec_fn=bound if self._with_parent else None,
            )
        return self

    def wait_until_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until `/health` reports that the server serves. If this fails, the server is ended.

        Raises:
            RuntimeError: The server has ended by itself. The message contains the server's log.
            TimeoutError: The server does not serve within this time. The message contains the server's log.
        """
        try:
            self.until(lambda: self.status is not None or self.healthy(), seconds)
        except BaseException:
            self.stop()
            raise
        if self.status is not None:
            raise RuntimeError(f"the server ended with exit status {self.status}:\n{self.log.read_text()}")

    # --- over HTTP ---

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until `condition`, which may ask the server over HTTP, is true. Raises TimeoutError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                log = self.log.read_text()
                raise TimeoutError(f"the condition was not true within {seconds:g} s; the server's log:\n{log}")
            time.sleep(0.1)  # polling is needed, because HTTP offers no event to wait for

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of `/health`."""
        return self._exchange(f"{self.url}/health", 5)

    def healthy(self) -> bool:
        """Whether `/health` reports that the server serves."""
        try:
            return self.health()[0] == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def post(self, body: dict[str, Any], timeout: float) -> tuple[int, Any]:
        """POST a chat completion. Returns the status and the parsed body."""
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        return self._exchange(request, timeout)

    def _exchange(self, request: str | urllib.request.Request, timeout: float) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    # --- as processes ---

    @property
    def status(self) -> int | None:
        """Exit status of the main process; None while it runs."""
        return None if self.process is None else self.process.poll()

    def processes(self) -> list[psutil.Process]:
        """The main process and all its descendants that exist now."""
        if self.process is None:
            return []
        try:
            main = psutil.Process(self.process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = STOP_SECONDS) -> int:
        """Send the main process a signal, unless it has ended. Returns its exit status.

        Raises:
            subprocess.TimeoutExpired: The process does not end within this time.
        """
        assert self.process is not None, "it has not been started"
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def kill(self) -> int:
        """Kill the main process, unless it has ended. Returns its exit status."""
        assert self.process is not None, "it has not been started"
        self.process.kill()
        return self.process.wait()

    def stop(self) -> int:
        """End the server by SIGTERM, and leave none of its processes running. Returns its exit status.

        Raises:
            RuntimeError: A worker outlived the main process; it has been killed.
        """
        family = self.processes()
        try:
            return self.end()
        except subprocess.TimeoutExpired:
            return self.kill()
        finally:
            _, alive = psutil.wait_procs(family[1:], timeout=5)
            for process in alive:
                process.kill()
            if alive:
                raise RuntimeError(f"left behind: {alive}")
