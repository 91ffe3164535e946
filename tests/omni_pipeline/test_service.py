"""A service in a separate process works from its start to its end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from omni_pipeline.commands.start_terminal import Terminal
from omni_pipeline.config.schema import Server
from omni_pipeline.deployment.resolve import Deployment
from omni_pipeline.errors import StartupError
from omni_pipeline.service import listen, serve, url
from omni_pipeline.supervision.worker_lifecycle import StartProgress
from tests.omni_pipeline.conftest import ROOT
from tests.omni_pipeline.sessions import echo_config, gone

PROGRAM = """
import asyncio, msgspec
from rich.console import Console
from omni_pipeline.service import serve
from omni_pipeline.commands.start_terminal import Terminal
from tests.omni_pipeline.sessions import echo_config

config = echo_config()
config.server.port = 0
with Terminal(Console()) as terminal:
    asyncio.run(serve(config, terminal, gateway="tests.omni_pipeline.plain_gateway:run"))
"""


class Service(subprocess.Popen[str]):
    """A process that serves the echo pipeline through `plain_gateway`."""

    def __init__(self) -> None:
        super().__init__([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []

    def until(self, pattern: str) -> re.Match[str]:
        """Reads the output until a line matches `pattern`, and returns the match."""
        assert self.stdout is not None
        for line in self.stdout:
            self.lines.append(line.rstrip())
            found = re.search(pattern, line)
            if found:
                return found
        raise AssertionError(f"ended without {pattern!r}: {self.lines}")

    def children(self) -> list[int]:
        """The process ids of the fork server and the workers."""
        (server,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        workers = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        return [int(server), *map(int, workers)]


@pytest.fixture
def service(run_root: Path) -> Iterator[Service]:
    with Service() as service:
        yield service
        service.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_service_loads_answers_and_stops_on_a_signal(service: Service, number: signal.Signals) -> None:
    port = int(service.until(r"Listening on http://127\.0\.0\.1:(\d+)")[1])
    assert re.search(r"no/checkpoint · 3 workers · cpu", service.lines[0])
    assert [bool(re.search(r"✓ \w+ loaded in .* s \(\d/3\)", line)) for line in service.lines[2:5]] == [True] * 3
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"good day\n")
        assert client.makefile().readline() == "no/checkpoint: GOOD DAY\n"
    service.until(r"Ready after .* s\.")
    service.until(rf"curl http://127\.0\.0\.1:{port}/v1/chat/completions")
    children = service.children()
    assert len(children) == 4
    service.send_signal(number)
    service.until("Stopping")
    assert service.wait(10) == 0
    assert all(gone(pid, 0) for pid in children)


async def test_gateway_serves_while_the_workers_load(run_root: Path) -> None:
    gate = run_root / "gate"
    os.mkfifo(gate)
    config = echo_config(shout={"gate": str(gate)})
    with listen(Server(port=0)) as probe:
        config.server.port = probe.getsockname()[1]

    async def ask() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", config.server.port)
        writer.write(b"good day\n")
        line = (await reader.readline()).decode()
        writer.close()
        return line

    loaded = asyncio.Event()
    display = Quiet(loaded)
    service = asyncio.create_task(serve(config, display, gateway="tests.omni_pipeline.plain_gateway:run"))
    await display.begun.wait()
    assert re.match("503: still loading .*shout", await ask())
    await asyncio.to_thread(gate.write_text, "")
    await loaded.wait()
    assert await ask() == "no/checkpoint: GOOD DAY\n"
    os.kill(os.getpid(), signal.SIGTERM)
    await service
    gate.unlink()


class Quiet:
    """A progress display that shows nothing. It records the start and the end of loading."""

    def __init__(self, loaded: asyncio.Event) -> None:
        self._loaded = loaded
        self.begun = asyncio.Event()

    def begin(self, deployment: Deployment) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def progress(self, event: StartProgress) -> None:
        self.begun.set()

    def loaded(self, url: str, seconds: float) -> None:
        self._loaded.set()

    def stopping(self) -> None:
        pass


def test_signal_while_loading_stops_at_once(service: Service) -> None:
    service.until("3 workers")
    service.send_signal(signal.SIGTERM)
    assert service.wait(10) == 0


async def test_worker_that_cannot_load_ends_the_start_with_its_reason(
    run_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = echo_config(join={"refuse": "Buy a bigger disk."})
    config.server.port = 0
    with Terminal(Console()) as terminal, pytest.raises(StartupError, match="Worker join could not load: Buy a bigger"):
        await serve(config, terminal, gateway="tests.omni_pipeline.plain_gateway:run")
    assert "Listening" not in capsys.readouterr().out


def test_taken_port_is_refused_with_advice() -> None:
    with listen(Server(port=0)) as taken, pytest.raises(StartupError, match=r"is in use: stop the program .* --port"):
        listen(Server(port=taken.getsockname()[1]))


def test_unknown_host_is_refused() -> None:
    with pytest.raises(StartupError, match="check --host"):
        listen(Server(host="no.such.host.invalid"))


def test_foreign_address_is_refused() -> None:
    with pytest.raises(StartupError, match=r"Cannot listen on 192\.0\.2\.1"):
        listen(Server(host="192.0.2.1"))


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("localhost", "localhost")]
)
def test_url_is_one_that_can_be_opened(host: str, shown: str) -> None:
    with listen(Server(host=host, port=0)) as listening:
        assert url(host, listening) == f"http://{shown}:{listening.getsockname()[1]}"
