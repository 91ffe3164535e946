"""The complete framework works in real processes: start, messages, failures, death of workers, and stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy
import pytest

from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.errors import OmniError, StartupError
from omni_pipeline.supervision.fork_server import Preloaded
from omni_pipeline.supervision.pipeline import Supervisor
from omni_pipeline.wire.tensor import Tensor
from tests.omni_pipeline.conftest import ROOT
from tests.omni_pipeline.echo_stages import ECHO, Text
from tests.omni_pipeline.sessions import SECONDS, Session, echo_config, gone, running

pytestmark = pytest.mark.usefixtures("run_root")

ALL = frozenset(ECHO.stage_names)


async def test_split_pipeline_answers_from_one_process_per_stage() -> None:
    async with running(echo_config()) as session:
        answer = await session.ask("r", "hello you")
        assert answer.text == "HELLO YOU"
        assert answer.pids == [session.supervisor.pids[name] for name in ("split", "shout", "join")]
        assert os.getpid() not in answer.pids


async def test_fused_pipeline_answers_from_one_process() -> None:
    async with running(echo_config(worker="all")) as session:
        answer = await session.ask("r", "hello you")
        assert answer.text == "HELLO YOU"
        assert set(answer.pids) == {session.supervisor.pids["all"]}


@pytest.mark.parametrize("worker", [None, "all"], ids=["split", "fused"])
async def test_large_tensors_pass_through_unchanged(worker: str | None) -> None:
    array = numpy.random.default_rng(0).random((1000, 1000))
    async with running(echo_config(worker=worker)) as session:
        answer = await session.ask("r", "one", data=Tensor.of(array))
        assert answer.data is not None
        assert numpy.array_equal(answer.data.numpy(), array)


async def test_many_requests_at_once_all_get_their_own_answer() -> None:
    async with running(echo_config()) as session:
        for number in range(500):
            session.supervisor.submit(f"r{number}", Text(f"this is {number}"))
        answers = [await session.next() for _ in range(500)]
        assert {a.request_id: a.body.text for a in answers} == {f"r{n}": f"THIS IS {n}" for n in range(500)}  # type: ignore[union-attr]


async def test_progress_tells_of_the_imports_and_of_each_worker() -> None:
    seen: list[str] = []
    async with running(echo_config(), lambda event: seen.append(getattr(event, "worker", type(event).__name__))):
        assert seen[0] == Preloaded.__name__
        assert sorted(seen[1:]) == ["join", "shout", "split"]


async def test_nothing_is_accepted_before_the_workers_are_ready() -> None:
    supervisor = Supervisor(resolve(echo_config()))
    try:
        assert supervisor.problem == "still loading split, shout, join"
        with pytest.raises(OmniError) as caught:
            supervisor.submit("r", Text("x"))
        assert caught.value.info.status == 503
    finally:
        await supervisor.stop()


async def test_failures_come_back_as_data() -> None:
    async with running(echo_config()) as session:
        error = await session.fail("r", "fine refuse@join")
        assert (error.status, error.code, error.param, error.stage) == (400, "rude", "text", "join")
        error = await session.fail("s", "mistype@shout")
        assert error.status == 500
        assert (await session.ask("t", "still there")).text == "STILL THERE"
        assert session.supervisor.problem is None


async def test_aborted_request_is_never_answered_and_its_late_messages_are_counted() -> None:
    async with running(echo_config()) as session:
        supervisor = session.supervisor
        # The abort comes before the request, so the request's messages are late.
        supervisor.abort("r", ALL, lambda: None)
        supervisor.submit("r", Text("too late"))
        assert (await session.ask("s", "other")).text == "OTHER"
        async with asyncio.timeout(5):
            await supervisor.until(lambda: "split" in supervisor.stats and supervisor.stats["split"].received > 0)
        assert supervisor.stats["split"].dropped_late == 1
        assert session.answers.empty()


class Forgets:
    """Aborts requests, and records in order which of them have been forgotten."""

    def __init__(self, session: Session) -> None:
        self.supervisor = session.supervisor
        self._done: asyncio.Queue[str] = asyncio.Queue()

    def abort(self, request_id: str, stages: frozenset[str] = ALL) -> None:
        self.supervisor.abort(request_id, stages, lambda: self._done.put_nowait(request_id))

    async def next(self) -> str:
        """Waits until the next request is forgotten, and returns its id."""
        async with asyncio.timeout(SECONDS):
            return await self._done.get()

    def nothing_more(self) -> bool:
        return self._done.empty()


@pytest.mark.parametrize("worker", [None, "all"], ids=["split", "fused"])
async def test_aborted_request_is_forgotten_by_all(worker: str | None) -> None:
    async with running(echo_config(worker=worker)) as session:
        forgets = Forgets(session)
        for name in ("r", "s"):
            forgets.abort(name)
            assert await forgets.next() == name


async def test_request_is_not_forgotten_while_its_bytes_wait_for_a_busy_worker() -> None:
    async with running(echo_config()) as session:
        forgets, supervisor = Forgets(session), session.supervisor
        busy = supervisor.pids["shout"]
        os.kill(busy, signal.SIGSTOP)
        for name in ("r", "s"):
            supervisor.submit(name, Text("large", Tensor.of(numpy.zeros(1_000_000))))
        async with asyncio.timeout(SECONDS):
            await supervisor.until(lambda: "split" in supervisor.stats and supervisor.stats["split"].sent == 4)
        forgets.abort("r")
        forgets.abort("t", frozenset({"split"}))
        # The only stage of t has answered the abort. By now, all stages of r except the busy stage have answered too.
        assert await forgets.next() == "t"
        await asyncio.sleep(0.3)
        assert forgets.nothing_more()
        os.kill(busy, signal.SIGCONT)
        assert await forgets.next() == "r"
        assert (await session.next()).request_id == "s"


async def test_worker_that_is_killed_has_forgotten_everything() -> None:
    async with running(echo_config()) as session:
        forgets, supervisor = Forgets(session), session.supervisor
        supervisor.submit("r", Text("half of it hang@shout"))
        async with asyncio.timeout(SECONDS):
            await supervisor.until(lambda: "join" in supervisor.stats and supervisor.stats["join"].received == 3)
        forgets.abort("r")
        forgets.abort("s")
        await asyncio.sleep(0.3)
        assert forgets.nothing_more()
        os.kill(supervisor.pids["shout"], signal.SIGKILL)
        assert {await forgets.next(), await forgets.next()} == {"r", "s"}
        forgets.abort("t")  # while the worker is being replaced
        assert await forgets.next() == "t"


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_temporary_files_of_workers_go_with_the_run_directory(run_root: Path, end: str) -> None:
    async with running(echo_config()) as session:
        await session.ask("r", "litter@shout")
        assert len(os.listdir(run_root)) == 1  # the directory contains nothing except the run directory
        if end == "kill":
            os.kill(session.supervisor.pids["shout"], signal.SIGKILL)
            await session.lost()

    assert os.listdir(run_root) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refuse": "The disk is full: empty it."}, "Worker shout could not load: The disk is full: empty it."),
        ({"crash": "oh"}, "Worker shout could not load: RuntimeError: oh"),
    ],
)
async def test_worker_that_cannot_load_stops_the_start_with_its_reason(options: dict[str, str], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        async with running(echo_config(shout=options)):
            pytest.fail("started")
    assert str(caught.value) == message


async def test_busy_worker_is_killed_when_patience_ends() -> None:
    async with running(echo_config(), patience=0.2) as session:
        session.supervisor.submit("r", Text("hang@join hang@shout"))
        begin = time.monotonic()
    assert time.monotonic() - begin < 5


async def test_start_can_be_given_up() -> None:
    supervisor = Supervisor(resolve(echo_config()))
    starting = asyncio.create_task(supervisor.start("no/checkpoint"))
    await asyncio.sleep(0)
    starting.cancel()
    await supervisor.stop()
    assert supervisor.problem == "the server is shutting down"


async def test_workers_ignore_the_signals_that_a_terminal_sends_to_all() -> None:
    async with running(echo_config()) as session:
        for pid in session.supervisor.pids.values():
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        assert (await session.ask("r", "still here")).text == "STILL HERE"


async def test_idle_workers_use_no_cpu() -> None:
    async with running(echo_config()) as session:
        await session.ask("r", "warm")
        before = {pid: cpu_seconds(pid) for pid in session.supervisor.pids.values()}
        await asyncio.sleep(3)
        used = {pid: cpu_seconds(pid) - seconds for pid, seconds in before.items()}
        assert max(used.values()) <= 0.03


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("ready", [True, False], ids=["when ready", "while importing"])
def test_kill_of_the_main_process_leaves_nobody_and_nothing(ready: bool) -> None:
    program = textwrap.dedent(f"""
        import asyncio, os, psutil
        from msgspec import structs
        from omni_pipeline.deployment.resolve import resolve
        from omni_pipeline.supervision.pipeline import Supervisor
        from tests.omni_pipeline.sessions import echo_config, running

        async def main():
            if not {ready}:
                deployment = resolve(echo_config())
                slow = structs.replace(deployment.graph.stages[0], preload=("tests.omni_pipeline.slow_import",))
                stages = (slow, *deployment.graph.stages[1:])
                Supervisor(structs.replace(deployment, graph=structs.replace(deployment.graph, stages=stages)))
                await asyncio.Event().wait()
            async with running(echo_config()) as session:
                await session.ask("r", "spawn@shout")
                left = psutil.Process(session.supervisor.pids["shout"]).children()
                print(*session.supervisor.pids.values(), *(each.pid for each in left), flush=True)
                await asyncio.Event().wait()

        asyncio.run(main())
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as main:
        assert main.stdout is not None
        pids = [int(pid) for pid in main.stdout.readline().split()]
        assert len(pids) == (4 if ready else 1)  # all processes are gone, including a process that a worker has started
        parents = {parent(pid) for pid in pids[:3]} if ready else set()
        main.kill()
    assert [pid for pid in [*pids, *parents] if not gone(pid)] == []


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
