"""Workers that die or hang are reported and restarted, and their files and processes are removed. The tests use real
processes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

import psutil
import pytest

from omni_pipeline.config.schema import Config, Supervision
from omni_pipeline.errors import OmniError
from omni_pipeline.supervision import restart_timing
from omni_pipeline.supervision.pipeline import Supervisor
from omni_pipeline.wire.messages import Failed
from tests.omni_pipeline.echo_stages import Text
from tests.omni_pipeline.sessions import Session, echo_config, gone, running

pytestmark = pytest.mark.usefixtures("run_root")

STAGES = {"split", "shout", "join"}


async def whole(supervisor: Supervisor, stages: Collection[str] | None = None) -> None:
    """Wait until the given stages, or all stages, work again."""
    async with asyncio.timeout(20):
        await supervisor.wait_for(stages, None)


async def kill(session: Session, worker: str, number: signal.Signals = signal.SIGKILL) -> int:
    """Send a worker a signal and wait until its loss is reported. Returns its process id."""
    pid = session.supervisor.pids[worker]
    os.kill(pid, number)
    assert (await session.lost())[0] == {worker}
    return pid


async def test_death_of_a_worker_is_told_within_a_second() -> None:
    async with running(echo_config()) as session:
        await session.ask("r", "hello")
        begin = time.monotonic()
        os.kill(session.supervisor.pids["shout"], signal.SIGKILL)
        stages, error = await session.lost()
        assert time.monotonic() - begin < 1.0
        assert stages == {"shout"}
        assert (error.status, error.code) == (503, "worker_lost")
        problem = "worker shout was killed by SIGKILL (out of memory?), and is being restarted"
        assert session.supervisor.problem == problem
        assert set(session.supervisor.pids) == {"split", "join"}


@pytest.mark.parametrize("worker", sorted(STAGES))
async def test_dead_worker_is_replaced_and_the_others_find_its_successor(worker: str) -> None:
    async with running(echo_config()) as session:
        for number in range(2):
            before = dict(session.supervisor.pids)
            await kill(session, worker)
            await whole(session.supervisor)
            answer = await session.ask(f"r{number}", "hello again")
            assert answer.text == "HELLO AGAIN"
            assert answer.pids == [session.supervisor.pids[name] for name in ("split", "shout", "join")]
            assert {name for name, pid in session.supervisor.pids.items() if pid != before[name]} == {worker}
        report = session.supervisor.workers[worker]
        assert (report.state, report.restarts, report.last_end) == ("ready", 2, None)
        assert session.supervisor.problem is None


async def test_worker_that_takes_another_with_it_is_replaced_too() -> None:
    async with running(echo_config()) as session:
        for name in ("split", "join"):
            os.kill(session.supervisor.pids[name], signal.SIGKILL)
        assert {next(iter((await session.lost())[0])) for _ in range(2)} == {"split", "join"}
        await whole(session.supervisor)
        assert (await session.ask("r", "both back")).text == "BOTH BACK"


async def test_request_that_needs_a_missing_stage_is_refused_and_others_are_not() -> None:
    async with running(echo_config()) as session:
        supervisor = session.supervisor
        await kill(session, "join")
        with pytest.raises(OmniError) as caught:
            supervisor.submit("r", Text("x"), STAGES)
        info = caught.value.info
        assert (info.status, info.code, info.retry_after is not None) == (503, "not_ready", True)
        assert "join" in info.message
        supervisor.submit("s", Text("refuse@split"), {"split"})
        message = await session.next()
        assert isinstance(message, Failed)
        assert message.error.code == "rude"


async def test_request_may_wait_for_the_restart_unless_that_will_take_longer() -> None:
    async with running(echo_config()) as session:
        await kill(session, "shout")
        with pytest.raises(OmniError, match="these workers are not ready: shout"):
            await session.supervisor.wait_for(STAGES, 0.1)
        await session.supervisor.wait_for(STAGES, 20)
        assert (await session.ask("r", "patient")).text == "PATIENT"


async def test_what_neighbours_hold_of_a_lost_request_is_freed() -> None:
    async with running(echo_config()) as session:
        supervisor = session.supervisor
        supervisor.submit("r", Text("half of it hang@shout"))  # no client aborts this request
        async with asyncio.timeout(10):
            await supervisor.until(lambda: "join" in supervisor.stats and supervisor.stats["join"].received == 3)
        await kill(session, "shout")
        message = await session.next()
        assert isinstance(message, Failed)
        assert (message.request_id, message.error.code, message.error.stage) == ("r", "worker_lost", "shout")
        await whole(supervisor)
        async with asyncio.timeout(10):
            await supervisor.until(
                lambda: (
                    supervisor.stats.keys() >= STAGES
                    and not any(stats.live_requests for stats in supervisor.stats.values())
                )
            )
        assert session.answers.empty()


async def test_stage_that_breaks_fails_its_request_and_is_replaced() -> None:
    async with running(echo_config()) as session:
        assert (await session.fail("r", "broken@join")).status == 500
        assert (await session.lost())[0] == {"join"}
        report = session.supervisor.workers["join"]
        assert (report.state, report.last_end) == ("restarting", "ended with exit code 1")
        assert any("told to break" in line for line in report.last_words)
        await whole(session.supervisor)
        assert (await session.ask("s", "mended")).text == "MENDED"


async def test_crash_in_a_library_says_where() -> None:
    async with running(echo_config()) as session:
        session.supervisor.submit("r", Text("hang@join"))
        async with asyncio.timeout(10):
            await session.supervisor.until(lambda: "shout" in session.supervisor.stats)
        await kill(session, "join", signal.SIGSEGV)
        report = session.supervisor.workers["join"]
        assert report.last_end == "was killed by SIGSEGV"
        assert any("Segmentation fault" in line for line in report.last_words)
        assert any("fork_server.py" in line for line in report.last_words)


async def test_crash_loop_is_unhealthy_with_the_last_words_until_its_cause_is_gone(
    run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart_timing, "PAUSES", (0.0, 0.05))
    trouble = run_root / "trouble"

    async with running(echo_config(shout={"crash_if": str(trouble)})) as session:
        supervisor = session.supervisor
        trouble.touch()
        os.kill(supervisor.pids["shout"], signal.SIGKILL)
        async with asyncio.timeout(20):
            await supervisor.until(lambda: supervisor.workers["shout"].state == "unhealthy")
        report = supervisor.workers["shout"]
        assert report.restarts >= restart_timing.LOOP
        assert any("no luck today" in line for line in report.last_words)
        assert "ended 5 times in a row" in (supervisor.problem or "")
        with pytest.raises(OmniError) as caught:  # a caller gets this error at once and does not wait
            await supervisor.wait_for({"shout"}, 100)
        assert caught.value.info.retry_after == 30
        trouble.unlink()
        await whole(supervisor)
        assert (await session.ask("r", "at last")).text == "AT LAST"


def hasty() -> Config:
    config = echo_config()
    config.supervision = Supervision(silent_seconds=5)
    return config


async def test_stopped_worker_is_killed_and_replaced() -> None:
    async with running(hasty()) as session:
        await session.ask("r", "hello")
        pid = await kill(session, "shout", signal.SIGSTOP)
        assert gone(pid)
        assert "was inactive" in (session.supervisor.workers["shout"].last_end or "")
        await whole(session.supervisor)
        assert (await session.ask("s", "awake")).text == "AWAKE"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_everything_is_replaced_when_the_fork_server_fails(number: signal.Signals) -> None:
    async with running(hasty()) as session:
        before = set(session.supervisor.pids.values())
        os.kill(session.supervisor.launcher_pid, number)
        assert {name for _ in range(3) for name in (await session.lost())[0]} == STAGES
        assert all(gone(pid) for pid in before)
        await whole(session.supervisor)
        assert (await session.ask("r", "all new")).text == "ALL NEW"
        await kill(session, "join")
        await whole(session.supervisor)
        assert (await session.ask("s", "once more")).text == "ONCE MORE"


async def test_processes_that_a_worker_leaves_behind_are_ended() -> None:
    async with running(echo_config()) as session:
        await session.ask("r", "spawn@shout")
        (left,) = psutil.Process(session.supervisor.pids["shout"]).children()
        await kill(session, "shout")
        assert gone(left.pid)


async def test_processes_of_workers_end_with_the_service() -> None:
    async with running(echo_config()) as session:
        await session.ask("r", "spawn@shout")
        (left,) = psutil.Process(session.supervisor.pids["shout"]).children()
    assert gone(left.pid)
