"""Starts a server for trials, and observes it from outside: its health, processes, memory and leftovers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml
from server_process import ServerProcess

from trials.shared_memory import shared_memory

START_SECONDS = 300.0
STOP_SECONDS = 60.0
# A little longer than one second. Every second, a worker reports the requests that its stages hold.
SETTLED_SECONDS = 1.2
FORK_SERVER = "fork server"


class Service:
    """A running `sgl-omni serve`.

    Args:
        model_path: The checkpoint.
        config: The content of the configuration file.
        arguments: Further arguments of the command line.
        log: The file for the server's output.

    Attributes:
        config: The content of the configuration file.
    """

    def __init__(self, model_path: Path, config: dict[str, Any], arguments: list[str], log: Path) -> None:
        self.config = config
        self.temporary = Path(tempfile.mkdtemp(prefix="omni-try-"))
        self._home = Path(tempfile.mkdtemp(prefix="omni-home-"))
        path = self._home / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        # The compiled code is kept on purpose from one run to the next, so it must not count as left behind.
        compiled = {"TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"}
        self.server = ServerProcess(
            ["--model-path", str(model_path.resolve()), "--config", str(path), *arguments],
            log,
            environment=compiled | os.environ | {"TMPDIR": str(self.temporary)},
            with_parent=True,
        ).start()
        self.port, self.url = self.server.port, self.server.url
        self._seen: dict[int, psutil.Process] = {}
        self._segments: set[Path] = set()  # files in /dev/shm of the server's processes

    # --- health ---

    async def health(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        """The body of `/health`. If the server does not answer, the status in the body is ``unreachable``."""
        try:
            async with session.get(f"{self.url}/health", timeout=aiohttp.ClientTimeout(5)) as response:
                body: dict[str, Any] = await response.json()
                return body
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return {"status": "unreachable", "workers": {}, "stages": {}}

    async def until(self, session: aiohttp.ClientSession, *, healthy: bool, seconds: float = START_SECONDS) -> float:
        """Wait until the status in `/health` is ``ok``; without `healthy`, wait until it is not ``ok``. Returns the
        seconds that this took.

        Raises:
            TimeoutError: The status was still wrong after `seconds`.
            RuntimeError: The server has ended.
        """
        begin = time.monotonic()
        while ((await self.health(session))["status"] == "ok") != healthy:
            if self.server.status is not None:
                raise RuntimeError(f"the server has ended with exit status {self.server.status}")
            if time.monotonic() - begin > seconds:
                raise TimeoutError(f"waited {seconds:g} s, but the server is {'not' if healthy else 'still'} healthy")
            await asyncio.sleep(0.02)  # polling, because HTTP has no event to wait for
        self.processes()
        return time.monotonic() - begin

    async def until_idle(self, session: aiohttp.ClientSession, seconds: float) -> float:
        """Wait until no stage has reported a request for `SETTLED_SECONDS`. Returns the seconds from the call to the
        last moment at which a stage held a request.

        Raises:
            TimeoutError: A stage still held a request after `seconds`.
        """
        begin = held_at = time.monotonic()
        while (now := time.monotonic()) < held_at + SETTLED_SECONDS:
            stages = (await self.health(session))["stages"]
            held = {name: stage["live_requests"] for name, stage in stages.items() if stage["live_requests"]}
            if held or not stages:
                held_at = now
            if held_at - begin > seconds:
                raise TimeoutError(f"stages still hold requests after {seconds:g} s: {held}")
            await asyncio.sleep(0.02)
        return held_at - begin

    # --- processes and memory ---

    def processes(self) -> list[psutil.Process]:
        """The main process and all its descendants that exist now."""
        found = self.server.processes()
        self._seen.update({process.pid: process for process in found})
        self._segments |= shared_memory(found)
        return found

    def pid_of(self, name: str) -> int:
        """The process id of a worker, or of `FORK_SERVER`."""
        for process in self.processes():
            try:
                if process.cmdline()[0] == f"sgl-omni: {name}":
                    return process.pid
            except (psutil.NoSuchProcess, IndexError):
                continue
        raise LookupError(f"the server has no process named {name}")

    def pss_by_process(self) -> dict[str, int]:
        """The memory of each process, in bytes. The keys are the names of the processes. Shared pages are divided among
        the processes that use them.
        """
        found: dict[str, int] = {}
        for process in self.processes():
            try:
                name = process.cmdline()[0].removeprefix("sgl-omni: ")
                found[name] = found.get(name, 0) + process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
                continue
        return found

    def pss_bytes(self) -> int:
        """The memory of all processes together, in bytes."""
        return sum(self.pss_by_process().values())

    # --- the end ---

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the server with a signal. Returns its exit code."""
        self.processes()
        return self.server.end(number, STOP_SECONDS)

    def leftovers(self) -> dict[str, list[str]]:
        """The leftovers of an ended server, grouped by kind. Kills the processes that are left, and removes our own
        directories.
        """
        _, alive = psutil.wait_procs(list(self._seen.values()), timeout=5)
        with socket.socket() as probe:
            listening = probe.connect_ex(("127.0.0.1", self.port)) == 0
        left = {
            "processes": [str(process) for process in alive],
            "sockets": [self.url] if listening else [],
            "shared memory": sorted(str(path) for path in self._segments if path.exists()),
            "temporary files": sorted(os.listdir(self.temporary)),
        }
        for process in alive:
            process.kill()
        shutil.rmtree(self.temporary)
        shutil.rmtree(self._home)
        return left
