"""What all tests share: checkpoints, made once and kept between runs, and the reference on each."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the cores are shared with the servers under test
os.environ.setdefault("TQDM_DISABLE", "1")

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tests.device  # noqa: F401 (sets what CUDA has to know before it is there)

if TYPE_CHECKING:
    from fake_gpu import Accelerator

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))  # whose packages tests use too

# Two checkpoints that share no size: heads, experts, layers and vocabulary differ.
CHECKPOINTS = {"tiny": ["--preset", "tiny", "--seed", "0"], "nano": ["--preset", "nano", "--seed", "1"]}


def make_checkpoint(name: str) -> Path:
    """Make a random checkpoint under checkpoints/test unless it is there already, made by the same recipe."""
    target = ROOT / "checkpoints" / "test" / name
    script = ROOT / "scripts" / "make_tiny_checkpoint.py"
    subprocess.run([sys.executable, script, *CHECKPOINTS[name], "--out", target], check=True, stdout=subprocess.DEVNULL)
    return target


@pytest.fixture(scope="session")
def checkpoints() -> Callable[[str], Path]:
    """Path of the checkpoint with a name out of `CHECKPOINTS`."""
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
    """Where run directories are made in this test, and where none may be left (pytest's own path is too long)."""
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
    """A process in which torch, NVML and nvidia-smi describe GPUs that are not there (`scripts/fake_gpu`)."""
    from fake_gpu import Accelerator

    with Accelerator() as child:
        yield child
