"""Starts a server whose stages are on several hosts. Each other host is an agent process on this machine, with its own
address of the loopback network and its own directory for temporary files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.server_process import PROGRAM, ServerProcess
from tests.device import PATIENCE
from tests.server import Server

INVITE_SECONDS = 60

# The hosts of a test use the compiled kernels of this machine.
COMPILED = os.path.join(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")


def on_hosts(*names: str) -> dict[str, Any]:
    """The part of a configuration that defines these hosts."""
    return {
        "hosts": {name: {"listen": f"127.0.0.{2 + number}"} for number, name in enumerate(names)},
        "cluster": {"listen": "127.0.0.1", "port": 0},
    }


@contextlib.contextmanager
def joined(
    server: Server, inside: Mapping[str, Sequence[str]] | None = None
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Run `server` with the hosts of its configuration. Yields the agent of each host. When the server has ended, every
    agent ends by itself, and leaves no files.

    Args:
        inside: For some hosts, a command that runs the agent's command, for example in a network namespace. The keys
            are the names of the hosts.
    """
    assert isinstance(server.config, dict)
    agents: dict[str, subprocess.Popen[bytes]] = {}
    directory = Path(tempfile.mkdtemp(prefix="omni-h-"))
    try:
        server.launch()
        for name in server.config["hosts"]:
            agents[name] = start_agent(server, name, directory, (inside or {}).get(name, ()))
        server.wait_until_ready(PATIENCE.start)
        yield agents
        assert server.stop() == 0
        for name, agent in agents.items():
            assert agent.wait(30) == 0, (name, (directory / f"{name}.log").read_text())
            left = list((directory / name).iterdir())
            assert left == []
            log = (directory / f"{name}.log").read_text()
            assert "Traceback" not in log, log
    finally:
        server.stop()
        for agent in agents.values():
            agent.kill()
            agent.wait()
        shutil.rmtree(directory)


def start_agent(
    server: ServerProcess, name: str, directory: Path, inside: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Let a host join as the documentation shows: an invitation goes from one command to the other."""
    place = directory / name
    place.mkdir(exist_ok=True)
    assert server.process is not None
    command = [*PROGRAM, "invite", name, "--pid", str(server.process.pid)]

    def invited() -> bool:
        found = subprocess.run(command, capture_output=True, timeout=INVITE_SECONDS, check=False)
        invitations.append(found.stdout)
        return found.returncode == 0 or server.status is not None

    invitations: list[bytes] = []
    server.until(invited, INVITE_SECONDS)
    with (directory / f"{name}.log").open("ab") as log:
        agent = subprocess.Popen(
            [*inside, sys.executable, "-m", "omni_pipeline.cli", "join"],
            env={"TORCHINDUCTOR_CACHE_DIR": COMPILED} | os.environ | {"TMPDIR": str(place)},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
    assert agent.stdin is not None
    agent.stdin.write(invitations[-1])
    agent.stdin.close()
    return agent
