"""A worker process sees only its own GPUs, has its own environment variables, and starts only when the earlier workers
on its GPU are ready.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_pipeline.config.schema import Config, StageConfig
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu
from omni_pipeline.supervision.fork_server import Preloaded
from omni_pipeline.supervision.worker_lifecycle import StartProgress
from tests.omni_pipeline.echo_stages import ECHO_PATH
from tests.omni_pipeline.sessions import Session, running

GPUS = (Gpu(0, "first", 2**35, "5"), Gpu(1, "second", 2**35, "3"))
PARTS = (*GPUS, Gpu(2, "part", 2**33, "MIG-abc"), Gpu(3, "part", 2**33, "MIG-def"))


@pytest.fixture(autouse=True)
def _environments_stay_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    # With this variable, setproctitle does not overwrite the environment that /proc shows.
    monkeypatch.setenv("SPT_NOENV", "1")


def config(**stages: StageConfig) -> Config:
    return Config(model_path="x", graph=ECHO_PATH, stages=stages, log_level="error")


def environment(session: Session, worker: str) -> dict[str, str]:
    """The environment with which a worker's interpreter was started."""
    text = Path(f"/proc/{session.supervisor.pids[worker]}/environ").read_text()
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


async def test_worker_sees_its_gpus_and_no_others(run_root: Path) -> None:
    shared = StageConfig(gpus=[0, 1])
    async with running(config(shout=shared), gpus=GPUS) as session:
        seen = {name: environment(session, name)["CUDA_VISIBLE_DEVICES"] for name in session.supervisor.pids}
        assert seen == {"split": "", "shout": "5,3", "join": "3"}
        assert environment(session, "join")["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert (await session.ask("a", "good day")).text == "GOOD DAY"


async def test_workers_on_parts_of_a_card_see_one_part_each(run_root: Path) -> None:
    stages = {"shout": StageConfig(gpus=[3]), "join": StageConfig(gpus=[2])}
    async with running(config(**stages), gpus=PARTS) as session:
        seen = {name: environment(session, name)["CUDA_VISIBLE_DEVICES"] for name in ("shout", "join")}
        assert seen == {"shout": "MIG-def", "join": "MIG-abc"}


@pytest.mark.parametrize(
    ("stage", "gpus"),
    [
        (StageConfig(gpus=[2, 3]), PARTS),
        (StageConfig(gpus=[0, 2]), PARTS),
        (StageConfig(tp_size=2), (Gpu(0, "part", 2**33, "MIG-abc"), Gpu(1, "part", 2**33, "MIG-def"))),
    ],
)
def test_ranks_on_parts_of_a_card_are_refused(stage: StageConfig, gpus: tuple[Gpu, ...]) -> None:
    with pytest.raises(StartupError, match="the stage cannot have 2 ranks, because GPU"):
        resolve(config(shout=stage), gpus)


async def test_worker_has_the_environment_of_its_stages_from_its_first_line(run_root: Path) -> None:
    stages = {"split": StageConfig(environment={"COLOUR": "red"}), "shout": StageConfig()}
    async with running(config(**stages), gpus=()) as session:
        assert environment(session, "split")["COLOUR"] == "red"
        assert "COLOUR" not in environment(session, "shout")


async def test_worker_that_fills_its_gpu_is_started_when_the_others_are_ready(run_root: Path) -> None:
    ready: list[str] = []

    def note(event: StartProgress) -> None:
        if not isinstance(event, Preloaded):
            ready.append(event.worker)

    stages = {"shout": StageConfig(gpus=[0]), "join": StageConfig(gpus=[0])}
    async with running(config(**stages), note, gpus=GPUS) as session:
        begun = {name: started(pid) for name, pid in session.supervisor.pids.items()}
    assert ready.index("shout") < ready.index("join")
    assert begun["shout"] < begun["join"]


def started(pid: int) -> int:
    """The time at which a process was started, in ticks of the system's clock."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
