"""All ranks of a stage do the same work. If one rank ends, all other ranks of the stage end too."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from omni_pipeline.config.schema import Config, StageConfig
from omni_pipeline.contract.stage import StageContext
from omni_pipeline.deployment.checkpoint import described
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.deployment.stage_checks import check_stages
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import parse
from omni_pipeline.supervision.pipeline import Supervisor
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Advice, Shutdown
from omni_pipeline.wire.transport import Inbox, Outbox, endpoint
from omni_pipeline.worker.tensor_parallel import Leader, follow
from stages.topology import QWEN3_OMNI
from tests.omni_pipeline.echo_stages import ECHO, Options, Shout, Text
from tests.omni_pipeline.sessions import Session, echo_config, gone, running


def shared(ranks: int, **options: dict[str, str]) -> Config:
    """A configuration of the echo graph with several ranks for `shout`."""
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
        (
            64,
            "stages.thinker.tp_size: 64 ranks cannot share the model evenly: num_attention_heads is 32, so each rank",
        ),
        (
            3,
            "each rank would get 10.6667 (not a whole number). "
            "Up to 16, these numbers of ranks can share it evenly: 1, 2, 4, 8, 16.",
        ),
    ],
)
def test_number_of_ranks_has_to_divide_the_model(data: Path, ranks: int, message: str | None) -> None:
    told = refusal(data, {}, ranks)
    assert told is None if message is None else message in str(told)


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
INT4 = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


@pytest.mark.parametrize("quantization", [FP8, INT4])
@pytest.mark.parametrize(("ranks", "part"), [(4, 192), (8, 96)])
def test_each_rank_has_to_get_whole_blocks_and_groups(
    data: Path, quantization: dict[str, Any], ranks: int, part: int
) -> None:
    told = str(refusal(data, quantization, ranks))
    assert told.startswith(f"stages.thinker.tp_size: {ranks} ranks cannot share the model evenly: ")
    assert f"moe_intermediate_size is 768, so each rank would get {part}, which is not a multiple of 128" in told
    assert told.endswith("these numbers of ranks can share it evenly: 1, 2.")
    assert refusal(data, quantization, 2) is None


def test_ranks_on_a_cpu_share_what_is_unpacked(data: Path) -> None:
    assert refusal(data, FP8, 4, gpus="") is None


def refusal(data: Path, quantization: dict[str, Any], ranks: int, gpus: str = "64x80GB") -> StartupError | None:
    """The error message for the 30B model with this quantisation if the thinker has this many ranks."""
    config = json.loads((data / "qwen3_omni_30b" / "config.json").read_text())
    config |= {"quantization_config": quantization} if quantization else {}
    assert QWEN3_OMNI.checkpoint is not None
    checkpoint = described("x", config, QWEN3_OMNI.checkpoint)
    stages = {"thinker": StageConfig(tp_size=ranks)}
    settings = Config(model_path="x", stages=stages, device="auto" if gpus else "cpu")
    deployment = resolve(settings, parse(gpus) if gpus else ())
    try:
        check_stages(deployment, checkpoint)
    except StartupError as error:
        return error
    return None


def test_followers_get_the_advice_that_their_leader_gets(run_root: Path) -> None:
    """If only the leader got an `Advice` message, the ranks would form different batches."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    codec = Codec(ECHO.body_types(), ECHO.advice_types())
    inbox, outbox = Inbox(context, endpoint(str(run_root), "follower", 0)), Outbox(context)
    leader = object.__new__(Leader)
    leader._outbox, leader._codec, leader._addresses = outbox, codec, [inbox.address]
    leader._stage, stage = Shout(echo_context("shout")), Shout(echo_context("shout"))
    leader.advise(Advice("join", "shout", Text("hurry")))
    leader._tell(Shutdown())
    follow(stage, inbox, codec)
    assert leader._stage.advised == stage.advised == ["hurry"]
    outbox.close(0)
    inbox.close()
    context.destroy(linger=0)


def echo_context(name: str) -> StageContext:
    return StageContext(name, "no/checkpoint", "cpu", Options(), frozenset(ECHO.stage_names), "/nowhere")
