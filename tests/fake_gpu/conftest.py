"""What the tests under fake GPUs share: one child process, and checkpoints with nothing but a config.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import Accelerator
from faked_starts import checkpoints

from tests.fake_gpu.imports import modules

DescribeEngine = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def engines(accelerator: Accelerator) -> Accelerator:
    """The process under fake GPUs, with all imported that a worker with a GPU imports."""
    failures = accelerator.load(modules())
    assert not failures, "\n".join(failures.values())
    return accelerator


@pytest.fixture(scope="session")
def described(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of the 30B checkpoint of a kind out of `checkpoints.QUANTIZATION`, with two layers in each part."""
    root = tmp_path_factory.mktemp("checkpoints")
    paths = {kind: checkpoints.write(kind, root, layers=2) for kind in checkpoints.QUANTIZATION}
    return paths.__getitem__


@pytest.fixture(scope="session")
def engine(described: Callable[[str], Path]) -> DescribeEngine:
    """A `faked_starts.engines.Engine` of one of the two stages with a checkpoint of a kind, as plain values."""

    def describe(stage: str, kind: str, **options: Any) -> dict[str, Any]:
        return {
            "stage": stage,
            "model_path": str(described(kind)),
            "options": {"max_total_tokens": 100_000, **options},
            "stages": ["thinker", "talker_ar"],
            "static": 40 * 1024**3,
        }

    return describe
