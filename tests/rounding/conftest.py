"""Provides the reference's recorded results on each checkpoint, the stages under test, and a judge of their errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from stages.preprocessing.features import Features
from tests.device import DEVICE, DTYPE
from tests.equality.conversations import Kit
from tests.rounding import cases, limits
from tests.rounding.reference import RoundedReference, Speech
from tests.rounding.stages import Media, ReferenceStages, StagesUnderTest, media

FULL = DTYPE == "bfloat16"
"""Whether all tests run, on all checkpoints. With `make test`, only some tests run, on fewer checkpoints."""

Judge = Callable[[str, Mapping[str, float]], None]


@dataclass(frozen=True)
class Subject:
    """One checkpoint, with the reference's results on it and with the stages under test.

    Attributes:
        end: The id that ends speech.
    """

    name: str
    truth: ReferenceStages
    ours: StagesUnderTest
    speeches: dict[str, Speech]
    media: Media
    end: int


@pytest.fixture(scope="session", autouse=True)
def one_quiet_thread() -> Iterator[None]:
    """Use one thread, and hide the warning of transformers that a forced answer has no end token."""
    torch.set_num_threads(1)
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="session")
def media_directory(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A directory that servers may read. It has the committed media twice: under the usage guide's paths, and at the
    top level.
    """
    directory = tmp_path_factory.mktemp("media")
    (directory / "tests" / "data").mkdir(parents=True)
    for file in data.glob("*.*"):
        for target in (directory, directory / "tests" / "data"):
            (target / file.name).write_bytes(file.read_bytes())
    return directory


@pytest.fixture(scope="session")
def kit(media_directory: Path) -> Kit:
    return Kit(media_directory, media_directory)


@pytest.fixture(scope="session")
def truths() -> Callable[[str], RoundedReference]:
    """A function that returns the reference in float32 for the name of a checkpoint."""
    return cache(lambda name: RoundedReference(cases.checkpoint(name), torch.float32))


@pytest.fixture(scope="session")
def subjects(
    truths: Callable[[str], RoundedReference], kit: Kit, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Subject]:
    @cache
    def subject(name: str) -> Subject:
        truth = truths(name)
        end = truth.model.config.talker_config.codec_eos_token_id
        scratch = tmp_path_factory.mktemp("run")
        return Subject(
            name,
            ReferenceStages(truth),
            StagesUnderTest(cases.checkpoint(name), DEVICE, "bfloat16", scratch, end),
            cases.record(truth, kit),
            media(kit, Features(truth.processor)),
            end,
        )

    return subject


@pytest.fixture
def judge(record_property: Callable[[str, object], None]) -> Judge:
    """Compares measured errors with the limits of a checkpoint, and records errors and limits for the report."""

    def check(checkpoint: str, figures: Mapping[str, float]) -> None:
        most = limits.limits(checkpoint)
        for figure, value in figures.items():
            record_property(f"figure: {figure}", json.dumps([value, most[figure]]))
        assert not (wrong := limits.too_large(figures, most)), "; ".join(wrong)

    return check
