"""Workers on GPUs start in a new interpreter. After their start, such workers behave like forked workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from omni_pipeline.config.schema import Config
from omni_pipeline.deployment.resolve import resolve
from tests.omni_pipeline.echo_stages import ECHO
from tests.omni_pipeline.sessions import echo_config, gone, running
from tests.omni_pipeline.supervision.test_restarting import kill, whole


def fresh() -> Config:
    """The configuration of the echo graph. Each stage has a worker that starts in a new interpreter."""
    config = echo_config()
    for stage in config.stages.values():
        stage.environment = {"FRESH": "yes"}
    return config


async def test_fresh_workers_answer_as_forked_ones_do(run_root: Path) -> None:
    answers = []
    for config in (echo_config(), fresh()):
        async with running(config) as session:
            interpreters = {os.readlink(f"/proc/{pid}/exe") for pid in session.supervisor.pids.values()}
            assert len(interpreters) == 1
            answers.append((await session.ask("r", "how are you")).text)
            error = await session.fail("s", "fail@shout")
            assert error.code == "unspeakable"
    assert answers == ["HOW ARE YOU"] * 2


async def test_nothing_is_imported_for_them_beforehand(run_root: Path) -> None:
    assert all(worker.fresh for worker in resolve(fresh()).workers)
    assert resolve(fresh()).preload() == ()
    assert resolve(echo_config()).preload() != ()


async def test_fresh_worker_that_dies_or_hangs_is_replaced_by_a_fresh_one(
    run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With this variable, setproctitle does not overwrite the environment that /proc shows.
    monkeypatch.setenv("SPT_NOENV", "1")
    config = fresh()
    config.supervision.silent_seconds = 5
    async with running(config) as session:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            for name in ECHO.stage_names if number == signal.SIGKILL else ("shout",):
                assert gone(await kill(session, name, number))
                await whole(session.supervisor)
                environment = psutil.Process(session.supervisor.pids[name]).environ()
                assert environment["FRESH"] == "yes"
                assert (await session.ask(f"{number} {name}", "good again")).text == "GOOD AGAIN"


async def test_what_fresh_workers_start_and_leave_ends_with_them(run_root: Path) -> None:
    """The test covers processes and files. `run_root` checks again at the end that no files are left."""
    async with running(fresh()) as session:
        await session.ask("r", "spawn@shout litter@shout")
        (left,) = psutil.Process(session.supervisor.pids["shout"]).children()
        assert files(run_root, "*/shout.0.scratch/*") != []
        await kill(session, "shout")
        assert gone(left.pid)
        assert files(run_root, "*/shout.0*") == []


def files(directory: Path, pattern: str) -> list[Path]:
    return list(directory.glob(pattern))
