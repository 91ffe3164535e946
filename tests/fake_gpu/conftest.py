"""Provides fixtures of the tests with fake GPUs: one child process, and checkpoints without weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import Accelerator
from faked_starts import checkpoints
from faked_starts.data import Built, PlannedEngine
from faked_starts.layouts import FakedStart, starts
from faked_starts.resolution import Started, build, resolve, sample

from tests.fake_gpu.imports import modules

DescribeEngine = Callable[..., PlannedEngine]
Models = Callable[[str, str], Built]


@pytest.fixture(scope="session")
def engines(accelerator: Accelerator) -> Accelerator:
    """The process with fake GPUs. It has imported everything that a worker with a GPU imports."""
    failures = accelerator.load(modules())
    assert not failures, "\n".join(failures.values())
    return accelerator


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DescribeEngine:
    """A function that describes an engine of the thinker or the talker. The engine's checkpoint is the 30B checkpoint
    of a given kind (for example ``FP8``), with only two layers in each part.
    """
    root = tmp_path_factory.mktemp("small")
    paths = {kind: checkpoints.write(kind, root, layers=2) for kind in checkpoints.QUANTIZATION}

    def describe(stage: str, kind: str, **options: Any) -> PlannedEngine:
        return sample(stage, paths[kind], **options)

    return describe


@pytest.fixture(scope="session")
def model(engines: Accelerator, engine: DescribeEngine) -> Models:
    """The model of a stage for a kind of checkpoint, built on the device ``meta``. Each model is built only once."""
    made: dict[tuple[str, str], Built] = {}

    def built(stage: str, kind: str) -> Built:
        if (stage, kind) not in made:
            made[stage, kind] = build(engines, engine(stage, kind))
        return made[stage, kind]

    return built


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of the 30B checkpoints, by the kind of checkpoint (for example ``FP8``)."""
    root = tmp_path_factory.mktemp("published")
    return {kind: checkpoints.write(kind, root) for kind in checkpoints.QUANTIZATION}


@pytest.fixture(scope="session")
def all_starts(published: dict[str, Path]) -> list[FakedStart]:
    """A faked start of every layout, with every kind of checkpoint, on every machine."""
    return list(starts(published))


@pytest.fixture(scope="session")
def started(engines: Accelerator, all_starts: list[FakedStart]) -> list[Started]:
    """The engines of the layouts that fit on their GPUs, with SGLang's resolved arguments."""
    return list(resolve(engines, all_starts))
