"""Provides the fixtures of all tests: media, directories, simulated GPUs, and checkpoints, which are kept between test
runs.
"""

from __future__ import annotations

import os

# Torch reads this variable when it is imported. The servers under test share the cores, so each process uses one
# thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tests.device  # noqa: F401 (sets variables that CUDA reads when it starts)

if TYPE_CHECKING:
    from fake_gpu import Accelerator

    from tests.server import Server

ROOT = Path(__file__).parent.parent

# The shipped checkpoint, or another demo checkpoint to test.
DEMO = Path(os.environ.get("DEMO_CHECKPOINT", ROOT / "demo" / "qwen3-omni-demo"))

# "tiny" and "nano" differ in every size: heads, experts, layers and vocabulary. "thinking" reasons and does not speak.
CHECKPOINTS = {
    "tiny": ["--preset", "tiny", "--seed", "0"],
    "nano": ["--preset", "nano", "--seed", "1"],
    "thinking": ["--preset", "tiny", "--seed", "0", "--kind", "thinking"],
}


def make_checkpoint(name: str) -> Path:
    """Make a random checkpoint under checkpoints/test, unless that directory already has a checkpoint from the same
    recipe. Another run of the tests may need the same checkpoint at the same time, so only one run makes it.
    """
    target = ROOT / "checkpoints" / "test" / name
    script = ROOT / "scripts" / "make_tiny_checkpoint.py"
    command = [sys.executable, script, *CHECKPOINTS[name], "--out", target]
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target


@pytest.fixture(scope="session")
def checkpoints() -> Callable[[str], Path]:
    """A function that returns the path of a checkpoint for a name in `CHECKPOINTS`."""
    made: dict[str, Path] = {}

    def path(name: str) -> Path:
        if name not in made:
            made[name] = make_checkpoint(name)
        return made[name]

    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    """The default random checkpoint."""
    return checkpoints("tiny")


@pytest.fixture(scope="session")
def data() -> Path:
    """The committed test media."""
    return ROOT / "tests" / "data"


@pytest.fixture
def run_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Directory for this test's run directories. At the end, no run directory may be left in it. Pytest's own directory
    cannot be used, because its path is too long.
    """
    root = Path(tempfile.mkdtemp(prefix="omni-t-"))
    monkeypatch.setenv("TMPDIR", str(root))
    monkeypatch.setattr(tempfile, "tempdir", None)
    try:
        yield root
        assert list(root.iterdir()) == []
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def accelerator() -> Iterator[Accelerator]:
    """A process in which torch, NVML and nvidia-smi report simulated GPUs (`scripts/fake_gpu`)."""
    from fake_gpu import Accelerator

    with Accelerator() as child:
        yield child


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Server]:
    """A server of the demo model that may read the committed media at the paths of the usage guide."""
    from tests.server import Server, colocated

    directory = tmp_path_factory.mktemp("demo")
    shutil.copytree(data, directory / "tests" / "data")
    server = Server(DEMO, directory, colocated(), speech=True).start()
    yield server
    assert server.stop() == 0
