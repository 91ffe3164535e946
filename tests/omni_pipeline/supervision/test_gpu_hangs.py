"""A worker on a GPU may be busy for a long time. It is replaced only if it hangs. The tests use real processes.

The tests need no GPU. A worker makes a library call that never ends. This looks exactly like a wait for a kernel that
never ends, from inside the process and from outside.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from omni_pipeline.config.schema import Config, StageConfig, Supervision
from omni_pipeline.gpus import parse
from omni_pipeline.wire.messages import Start
from tests.omni_pipeline.echo_stages import ECHO_PATH, LONG_SECONDS, Text
from tests.omni_pipeline.sessions import gone, running
from tests.omni_pipeline.supervision.test_restarting import whole

GPUS = parse("3x24GB")

# Time limits after which a worker counts as hung. Some limits are below the minimum that a configuration allows.
BOUNDS = Supervision(silent_seconds=4, step_seconds=60, gpu_wait_seconds=4)
SHORT_STEPS = Supervision(silent_seconds=6, step_seconds=6, gpu_wait_seconds=6)


def on_gpus(supervision: Supervision = BOUNDS, *, ranks: int = 1) -> Config:
    """A configuration of the echo graph with `shout` on the first GPUs and `join` on the last GPU."""
    stages = {"shout": StageConfig(gpus=list(range(ranks))), "join": StageConfig(gpus=[2])}
    return Config(model_path="x", graph=ECHO_PATH, supervision=supervision, stages=stages, log_level="error")


@pytest.fixture
def spinning(tmp_path: Path, run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared library with a function that never returns."""
    library = tmp_path / "spinning.so"
    source = "void spin(void) { for (volatile int i = 0;;) i++; }"
    subprocess.run(["cc", "-shared", "-x", "c", "-", "-o", library], input=source, text=True, check=True)
    monkeypatch.setenv("SPINNING", str(library))


@pytest.mark.parametrize(("trouble", "ranks"), [("spin", 1), ("spin_locked", 1), ("spin", 2)])
async def test_worker_that_waits_for_a_hung_gpu_is_replaced(trouble: str, ranks: int, spinning: None) -> None:
    """The worker is replaced even if the call keeps the interpreter's lock, or if all ranks wait for each other."""
    async with running(on_gpus(ranks=ranks), gpus=GPUS) as session:
        pid = session.supervisor.pids["shout"]
        session.supervisor.submit("r", Text(f"{trouble}@shout"))
        stages, error = await session.lost()
        assert (stages, error.code) == ({"shout"}, "worker_lost")
        assert gone(pid)
        assert "busy but made no progress" in (session.supervisor.workers["shout"].last_end or "")
        await whole(session.supervisor)
        assert (await session.ask("s", "good again")).text == "GOOD AGAIN"


async def test_worker_on_a_gpu_that_computes_for_long_is_let_be(run_root: Path) -> None:
    assert BOUNDS.gpu_wait_seconds + 2 < LONG_SECONDS
    async with running(on_gpus(), gpus=GPUS) as session:
        assert (await session.ask("r", "compute@shout")).text == "compute@shout"
        assert set(session.supervisor.restarts.values()) == {0}


async def test_worker_that_compiles_is_let_be_and_so_is_one_that_waits_for_its_kernel(run_root: Path) -> None:
    """A compilation may take longer than any other step."""
    assert max(SHORT_STEPS.step_seconds, SHORT_STEPS.silent_seconds) + 1 < LONG_SECONDS
    async with running(on_gpus(SHORT_STEPS), gpus=GPUS) as session:
        session.supervisor.submit("r", Text("doze@join"))
        session.supervisor.submit("s", Text("compile@shout"))
        messages = [await session.next() for _ in range(2)]
        assert all(isinstance(message, Start) for message in messages), messages
        assert set(session.supervisor.restarts.values()) == {0}
