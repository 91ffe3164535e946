"""Starts the real server with a command, as a user does, and stops it."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from server_process import PROGRAM, ServerProcess

from omni_pipeline.os_process import free_port
from tests.device import PATIENCE, on_device


@dataclass
class Server(ServerProcess):
    """One `sgl-omni serve` process with its workers.

    Attributes:
        checkpoint: Model directory.
        directory: Directory for the server's configuration file and log. The server may also read local media from this
            directory.
        config: Content of the configuration file, without the model path; or a value for ``--config``.
        arguments: Further command-line arguments.
        speech: Whether the server speaks. If not, it is started with ``--text-only``.
        start_seconds: Maximum seconds until the server is ready.
        program: The command line, up to the name of the subcommand.
    """

    checkpoint: Path
    directory: Path
    config: dict[str, Any] | str = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    speech: bool = False
    start_seconds: float = PATIENCE.start
    program: tuple[str, ...] = PROGRAM

    def __post_init__(self) -> None:
        port = free_port()
        self._written_config = self.directory / f"config-{port}.yaml"
        arguments = [
            *([] if self.speech else ["--text-only"]),
            *["--model-path", str(self.checkpoint)],
            *["--config", self.config if isinstance(self.config, str) else str(self._written_config)],
            *["--allowed-local-media-path", str(self.directory)],
            *self.arguments,
        ]
        log = self.directory / f"server-{port}.log"
        super().__init__(arguments, log, port=port, program=self.program, directory=self.directory)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        code = self.stop()
        assert error is not None or code == 0

    def start(self) -> Self:
        """Start the server, and wait until `/health` reports that it serves."""
        self.launch()
        self.wait_until_ready(self.start_seconds)
        return self

    def launch(self) -> None:
        """Start the server, without waiting until it serves."""
        if not isinstance(self.config, str):
            self._written_config.write_text(yaml.safe_dump(on_device(self.config)))
        super().start()

    def live_requests(self) -> dict[str, int]:
        """Number of requests that each stage held at the last heartbeat of its worker. This heartbeat was less than two
        seconds ago.
        """
        return {name: stage["live_requests"] for name, stage in self.health()[1]["stages"].items()}

    def post(self, body: dict[str, Any], timeout: float = PATIENCE.request) -> tuple[int, Any]:
        """POST a chat completion. Returns the status and the parsed body."""
        return super().post(body, timeout)


def fused(thinker: dict[str, Any] | None = None) -> dict[str, Any]:
    """A configuration with all stages of a text-only server in one worker, and with these thinker options."""
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


if __name__ == "__main__":  # start a server by hand: python -m tests.server CHECKPOINT
    server = Server(Path(sys.argv[1]), Path(os.getcwd())).start()
    print(server.url)
    signal.pause()
