"""Replicas are added and removed while the server runs, without a failed request, over a socket that only the user of
the server can open.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import structs
from typer.testing import CliRunner, Result

from omni_pipeline.cli import app
from omni_pipeline.config.schema import Config, GroupConfig
from omni_pipeline.errors import StartupError
from omni_pipeline.supervision.control_socket import control_sockets, send_order
from omni_pipeline.supervision.scaling import SCALING, ScaleOrder
from omni_pipeline.wire.messages import Failed, Start
from tests.omni_pipeline.echo_stages import Text
from tests.omni_pipeline.sessions import SECONDS, Session, echo_config, gone, running


def scalable(replicas: int = 1, most: int = 2, **options: dict[str, str]) -> Config:
    groups = {"shout": GroupConfig(replicas=replicas, max_replicas=most)}
    return structs.replace(echo_config(**options), groups=groups)  # type: ignore[arg-type]


class Traffic:
    """Keeps some requests in the pipeline, and sends the warm-up requests that the pipeline needs."""

    def __init__(self, session: Session, at_once: int) -> None:
        self.session = session
        self.at_once = at_once
        self.sent = self.answered = 0
        self.failed: list[Failed] = []
        self.done: set[str] = set()  # the requests that have been answered
        self._moved = asyncio.Event()
        self.used: set[int] = set()  # the processes of the stage `shout` since this was last cleared

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` is true. The condition is checked after each answer."""
        async with asyncio.timeout(SECONDS):
            while not condition():
                self._moved.clear()
                await self._moved.wait()

    def send(self) -> None:
        self.session.supervisor.submit(f"r{self.sent}", Text("one rest@shout two"))
        self.sent += 1

    async def keep_busy(self) -> None:
        for _ in range(self.at_once):
            self.send()
        while True:
            message = await self.session.answers.get()
            if isinstance(message, Failed):
                self.failed.append(message)
            self.session.supervisor.release(message.request_id)
            self.done.add(message.request_id)
            self._moved.set()
            if isinstance(message, Start) and not message.request_id.startswith("warm"):
                assert message.body.text == "ONE rest@shout TWO"
                self.answered += 1
                self._moved.set()
                self.used.add(message.body.pids[1])
                self.send()

    async def keep_warm(self) -> None:
        number = 0
        while True:
            through = await self.session.supervisor.cold()
            number += 1
            self.session.supervisor.submit(f"warm {number}", Text("warm"), warming=through)
            await self.until(lambda name=f"warm {number}": name in self.done)  # type: ignore[misc]


@asynccontextmanager
async def busy(session: Session, at_once: int = 8) -> AsyncIterator[Traffic]:
    traffic = Traffic(session, at_once)
    tasks = [asyncio.create_task(traffic.keep_busy()), asyncio.create_task(traffic.keep_warm())]
    try:
        async with asyncio.timeout(SECONDS):
            await session.supervisor.until(lambda: session.supervisor.degraded is None)
        yield traffic
    finally:
        for task in tasks:
            assert not task.done(), task.exception()
            task.cancel()


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["scale", *arguments])


async def scale(*arguments: str) -> Result:
    """Run the command in another thread, because the server runs in this thread."""
    async with asyncio.timeout(SECONDS):
        return await asyncio.to_thread(command, *arguments)


def files(run_root: Path) -> list[str]:
    """The names of the files in the run directory."""
    [run_dir] = run_root.glob("sgl-omni-*")
    return sorted(os.listdir(run_dir))


async def test_replicas_come_and_go_under_load_without_a_failed_request(run_root: Path) -> None:
    async with running(scalable(), patience=0.5) as session:
        supervisor = session.supervisor
        before = files(run_root)
        async with busy(session) as traffic:
            for _ in range(2):
                added = await scale("shout", "2")
                assert added.exit_code == 0, added.exception
                assert added.stdout.splitlines() == ["Starting shout@1.", "The group shout has 2 replicas."]
                assert supervisor.degraded is None
                assert supervisor.live_replicas("shout") == 2
                traffic.used.clear()
                reached = traffic.answered + 30
                await traffic.until(lambda reached=reached: traffic.answered >= reached)  # type: ignore[misc]
                both = {supervisor.pids["shout@0"], supervisor.pids["shout@1"]}
                assert traffic.used == both
                second = supervisor.pids["shout@1"]
                removed = await scale("shout", "1")
                assert removed.exit_code == 0, removed.exception
                assert removed.stdout.splitlines()[1:] == ["Stopped shout@1.", "The group shout has 1 replica."]
                assert gone(second)
                assert supervisor.problem is None
                assert list(supervisor.workers) == ["split", "shout@0", "join"]
        assert traffic.answered > 60
        assert traffic.failed == []
        assert files(run_root) == before


async def test_a_replica_that_leaves_keeps_its_requests_and_gets_no_new_ones(run_root: Path) -> None:
    async with running(scalable(replicas=2)) as session:
        supervisor = session.supervisor
        for number in range(4):
            supervisor.submit(f"r{number}", Text("one"))
            assert isinstance(await session.next(), Start)
        leaving = asyncio.create_task(scale("shout", "1"))
        async with asyncio.timeout(SECONDS):
            await supervisor.until(lambda: supervisor._roster.leaving("shout", 1))
        assert supervisor.live_replicas("shout") == 1
        # A request that needs data of an open request still goes to the replica of the open request, even if this
        # replica is being removed.
        for number, replica in ((0, 0), (1, 1)):
            supervisor.submit(f"beside {number}", Text("two"), beside=f"r{number}")
            answer = await session.next()
            assert isinstance(answer, Start)
            assert answer.body.pids[1] == supervisor.pids[f"shout@{replica}"]
            supervisor.release(f"beside {number}")
        supervisor.submit("new", Text("three"))
        answer = await session.next()
        assert isinstance(answer, Start)
        assert answer.body.pids[1] == supervisor.pids["shout@0"]
        assert not leaving.done()
        for name in ("r0", "r1", "r2", "r3", "new"):
            supervisor.release(name)
        removed = await leaving
        assert "Waiting for the requests of replica 1 to end. Number of requests: 2." in removed.stdout


async def test_a_replica_that_cannot_load_is_not_added(tmp_path: Path, run_root: Path) -> None:
    flag = tmp_path / "flag"
    async with running(scalable(shout={"crash_if": str(flag)})) as session, busy(session) as traffic:
        flag.touch()
        refused = await scale("shout", "2")
        assert isinstance(refused.exception, StartupError)
        assert "The replica has not been added: shout@1" in str(refused.exception)
        assert list(session.supervisor.workers) == ["split", "shout@0", "join"]
        assert session.supervisor.degraded is None
        flag.unlink()
        assert (await scale("shout", "2")).exit_code == 0
        assert traffic.failed == []


@pytest.mark.parametrize(
    ("group", "number", "message"),
    [
        ("shot", 1, "There is no group shot in the configuration; known here: shout."),
        ("shout", 3, "The group shout can have 1 to 2 replicas, because memory is planned only for these replicas"),
        ("shout", 0, "The group shout can have 1 to 2 replicas"),
    ],
)
async def test_an_order_that_cannot_be_carried_out_is_explained(
    run_root: Path, group: str, number: int, message: str
) -> None:
    async with running(scalable()):
        [path] = control_sockets(SCALING, run_root).values()
        [told] = await asyncio.to_thread(lambda: list(send_order(path, ScaleOrder(group, number))))
        assert told.failed
        assert message in told.text


async def test_the_socket_is_private_and_refuses_nonsense(run_root: Path) -> None:
    async with running(scalable()):
        [path] = control_sockets(SCALING, run_root).values()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        for sent in (b"nonsense\n", b'{"group": 3}\n', b"x" * 100_000 + b"\n", b""):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(sent)
            writer.write_eof()
            async with asyncio.timeout(5):
                line = await reader.readline()
            assert b'"failed":true' in line
            writer.close()
        wrong = await scale("shout", "2", "--pid", "1")
        assert "No running server with process id 1 accepts this command" in str(wrong.exception)


async def test_without_a_server_the_command_says_so(run_root: Path) -> None:
    assert "No running server accepts this command" in str((await scale("shout", "2")).exception)
