"""Starts the real server, as a user would, and stops it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.device import PATIENCE, on_device

STOP_SECONDS = 30


@dataclass
class Server:
    """One `sgl-omni serve` process with its workers.

    Attributes:
        checkpoint: Model directory.
        directory: Directory for its configuration file and log, from which it may also read local media.
        config: Content of the configuration file, without the model path; or a value for ``--config``.
        arguments: Further command-line arguments.
        speech: Whether it speaks, or serves text only.
        start_seconds: The longest time until it is ready.
        program: The command line, up to the name of the subcommand.
    """

    checkpoint: Path
    directory: Path
    config: dict[str, Any] | str = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    speech: bool = False
    start_seconds: float = PATIENCE.start
    program: tuple[str, ...] = (sys.executable, "-m", "omni_pipeline.cli")
    url: str = ""
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        code = self.stop()
        assert error is not None or code == 0

    def start(self) -> Server:
        """Start it, and wait until `/health` says that it serves."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = self.config if isinstance(self.config, str) else self._written(self.config, f"config-{port}.yaml")
        self.log = self.directory / f"server-{port}.log"
        command = [
            *[*self.program, "serve", *([] if self.speech else ["--text-only"])],
            *["--model-path", str(self.checkpoint), "--config", config, "--port", str(port)],
            *["--allowed-local-media-path", str(self.directory)],
            *self.arguments,
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=self.directory)
        process = self.process
        try:
            self.until(lambda: process.poll() is not None or self.healthy(), self.start_seconds)
        except BaseException:
            self.stop()
            raise
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{self.log.read_text()}")
        return self

    def _written(self, config: dict[str, Any], name: str) -> str:
        """The path of a configuration file with this content."""
        path = self.directory / name
        path.write_text(yaml.safe_dump(on_device(config)))
        return str(path)

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until `condition`, which asks over HTTP, is true. Raises AssertionError if that takes too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not met within {seconds:g} s; the server's log:\n{self.log.read_text()}")
            time.sleep(0.1)  # HTTP offers nothing better to wait on; only this function polls

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of `/health`."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def healthy(self) -> bool:
        try:
            return self.health()[0] == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def live_requests(self) -> dict[str, int]:
        """Number of requests that each stage held at its last heartbeat, less than two seconds ago."""
        return {name: stage["live_requests"] for name, stage in self.health()[1]["stages"].items()}

    def post(self, body: dict[str, Any], timeout: float = PATIENCE.request) -> tuple[int, Any]:
        """POST a chat completion. Returns the status and the parsed body."""
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def processes(self) -> list[psutil.Process]:
        """The main process and everything under it."""
        if self.process is None:
            return []
        try:
            main = psutil.Process(self.process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> int:
        """Stop it as Ctrl-C would. Returns its exit status. Kills what still runs after a while."""
        assert self.process is not None
        family = self.processes()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            left = [process for process in family if process.is_running() and process.pid != self.process.pid]
            _, alive = psutil.wait_procs(left, timeout=5)
            for process in alive:
                process.kill()
            assert not alive, f"left behind: {alive}"


def free_port() -> int:
    """A TCP port on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fused(thinker: dict[str, Any] | None = None) -> dict[str, Any]:
    """A configuration with all stages in one worker, and with these thinker options."""
    names = ("preprocessing", "image_encoder", "audio_encoder", "mm_aggregate", "thinker", "decode")
    stages: dict[str, Any] = {name: {"worker": "text"} for name in names}
    stages["thinker"]["options"] = thinker or {}
    return {"stages": stages}


def colocated() -> dict[str, Any]:
    """A configuration with one worker for all stages that would use a GPU."""
    names = ("image_encoder", "audio_encoder", "thinker", "talker_ar", "code_predictor", "code2wav")
    return {"stages": {name: {"worker": "gpu"} for name in names}}


def split(thinker: dict[str, Any] | None = None) -> dict[str, Any]:
    """A configuration with one worker for each stage, and with these thinker options."""
    return {"stages": {"thinker": {"options": thinker or {}}}}


if __name__ == "__main__":  # a server to play with: python -m tests.server CHECKPOINT
    server = Server(Path(sys.argv[1]), Path(os.getcwd())).start()
    print(server.url)
    signal.pause()
