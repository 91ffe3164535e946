"""SGLang's environment variables have our default values, unless the operator sets other values."""

from __future__ import annotations

import os

import pytest

from stages.sglang_engine import environment

PRECOMPILE = "SGLANG_JIT_DEEPGEMM_PRECOMPILE"
BINDING = "SGLANG_CPU_OMP_THREADS_BIND"


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PRECOMPILE, BINDING, "SGLANG_EXTERNAL_MODEL_PACKAGE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_kernels_are_not_compiled_for_every_size_at_the_start() -> None:
    environment.prepare()
    assert os.environ[PRECOMPILE] == "0"


def test_operator_may_have_it_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRECOMPILE, "1")
    environment.prepare()
    assert os.environ[PRECOMPILE] == "1"


@pytest.mark.parametrize(
    ("cpus", "ranks", "binding"),
    [
        ({0, 1}, 2, "0|1"),
        ({2, 3, 6, 7}, 2, "2,3|6,7"),
        ({0, 1, 2, 3, 4}, 2, "0,1|2,3"),
        ({5}, 2, "5|5"),
        ({0, 1}, 4, "0|1|0|1"),
    ],
)
def test_ranks_on_the_cpu_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, cpus: set[int], ranks: int, binding: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cpus)
    environment.bind_cpus(ranks)
    assert os.environ[BINDING] == binding


def test_operator_may_bind_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BINDING, "0-3|4-7")
    environment.bind_cpus(2)
    assert os.environ[BINDING] == "0-3|4-7"
