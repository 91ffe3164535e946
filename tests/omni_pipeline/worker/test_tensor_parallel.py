"""A stage of several ranks: all do the same, and none outlives another."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from omni_pipeline.config.schema import Config, StageConfig
from omni_pipeline.deployment.division import check_ranks
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import parse
from omni_pipeline.supervision.pipeline import Supervisor
from tests.omni_pipeline.sessions import Session, echo_config, gone, running


def shared(ranks: int, **options: dict[str, str]) -> Config:
    """The echo graph with a `shout` of several ranks."""
    config = echo_config(**options)
    config.stages["shout"].tp_size = ranks
    return config


@pytest.fixture
async def session(run_root: Path) -> AsyncIterator[Session]:
    async with running(shared(3)) as session:
        yield session


def followers(session: Session) -> list[int]:
    """Process ids of the other ranks of `shout`."""
    worker = session.supervisor.pids["shout"]
    return [int(pid) for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split()]


async def test_ranks_answer_as_one(session: Session) -> None:
    assert len(followers(session)) == 2
    for index in range(3):
        answer = await session.ask(f"r{index}", "how are you")
        assert answer.text == "HOW ARE YOU"
        assert answer.pids[1] == session.supervisor.pids["shout"]


async def test_refused_message_is_refused_by_all_ranks_and_harms_none(session: Session) -> None:
    error = await session.fail("a", "so refuse@shout it")
    assert error.code == "rude"
    assert (await session.ask("b", "still there")).text == "STILL THERE"
    assert len(followers(session)) == 2


async def test_worker_ends_with_a_follower(session: Session) -> None:
    os.kill(followers(session)[1], signal.SIGKILL)
    stages, error = await session.lost()
    assert stages == {"shout"}
    assert error.code == "worker_lost"


async def test_worker_comes_back_with_followers_of_its_own(session: Session) -> None:
    before = followers(session)
    os.kill(before[0], signal.SIGKILL)
    await session.lost()
    await session.supervisor.until(lambda: session.supervisor.problem is None)
    after = followers(session)
    assert len(after) == 2
    assert not {*before} & {*after}
    assert (await session.ask("a", "here again")).text == "HERE AGAIN"


async def test_followers_end_with_their_worker(session: Session) -> None:
    others = followers(session)
    os.kill(session.supervisor.pids["shout"], signal.SIGKILL)
    await session.lost()
    assert all(gone(pid) for pid in others)


async def test_failed_step_ends_the_worker(session: Session) -> None:
    others = followers(session)
    assert (await session.fail("a", "crash@shout")).status == 500
    await session.lost()
    assert all(gone(pid) for pid in others)


async def test_followers_leave_when_the_service_does(run_root: Path) -> None:
    async with running(shared(2)) as session:
        others = followers(session)
    assert all(gone(pid) for pid in others)


async def test_reason_of_ranks_that_cannot_load_is_told(run_root: Path) -> None:
    supervisor = Supervisor(resolve(shared(2, shout={"refuse": "Buy a bigger disk."})))
    try:
        with pytest.raises(StartupError, match="Worker shout could not load: Buy a bigger disk"):
            await supervisor.start("no/checkpoint")
    finally:
        await supervisor.stop()


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (2, None),
        (4, None),
        (8, "stages.thinker.tp_size: 8 ranks cannot share the model evenly: its num_attention_heads is 4."),
        (3, "3 ranks cannot share the model evenly: its num_attention_heads is 4. Use a number that divides it."),
    ],
)
def test_number_of_ranks_has_to_divide_the_model(tmp_path: Path, ranks: int, message: str | None) -> None:
    text = {"num_attention_heads": 4, "moe_intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"thinker_config": {"text_config": text}}))
    config = Config(model_path="x", stages={"thinker": StageConfig(tp_size=ranks)})
    deployment = resolve(config, parse("8x24GB"))
    if message is None:
        check_ranks(deployment, str(tmp_path))
        return
    with pytest.raises(StartupError) as caught:
        check_ranks(deployment, str(tmp_path))
    assert message in str(caught.value)
