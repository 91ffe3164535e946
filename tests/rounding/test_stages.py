"""In bfloat16, each stage is as close to the reference as the reference's own modules in bfloat16 are.

`make test` uses the smaller checkpoint; with ``OMNI_TEST_DTYPE=bfloat16``, all checkpoints are used.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.rounding import stages
from tests.rounding.conftest import FULL, Judge, Subject
from tests.rounding.limits import CHECKPOINTS

pytestmark = pytest.mark.parametrize("checkpoint", CHECKPOINTS if FULL else ("nano",))


def test_encoders(checkpoint: str, subjects: Callable[[str], Subject], judge: Judge) -> None:
    subject = subjects(checkpoint)
    judge(checkpoint, stages.compare_encoders(subject.ours, subject.truth, subject.media))


def test_talker(checkpoint: str, subjects: Callable[[str], Subject], judge: Judge) -> None:
    subject = subjects(checkpoint)
    judge(checkpoint, stages.compare_talker(subject.ours, subject.speeches, subject.end))


def test_predictor(checkpoint: str, subjects: Callable[[str], Subject], judge: Judge) -> None:
    subject = subjects(checkpoint)
    judge(checkpoint, stages.compare_predictor(subject.ours, subject.speeches))


def test_vocoder(checkpoint: str, subjects: Callable[[str], Subject], judge: Judge) -> None:
    subject = subjects(checkpoint)
    judge(checkpoint, stages.compare_vocoder(subject.ours, subject.speeches))
