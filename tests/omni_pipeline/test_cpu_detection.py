"""The detected CPU has the cores that affinity and control group allow, and the CPU's instructions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omni_pipeline import cpu_detection
from omni_pipeline.cpu_detection import Cpu


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))


def machine(root: Path, *, limit: str | None = None, flags: str | None = None) -> Path:
    """A root directory with the files of a machine. None leaves a file out."""
    for file, text in (("sys/fs/cgroup/cpu.max", limit), ("proc/cpuinfo", flags)):
        if text is not None:
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("limit", "cores"),
    [(None, 16), ("max 100000", 16), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("odd", 16)],
)
@pytest.mark.usefixtures("sixteen")
def test_cores_are_those_of_affinity_or_control_group(tmp_path: Path, limit: str | None, cores: int) -> None:
    assert cpu_detection.detect(machine(tmp_path, limit=limit)).cores == cores


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        (None, False),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_tile amx_bf16\n", True),
        ("model name\t: amx_bf16\nflags\t\t: fpu\n", False),
    ],
)
def test_bfloat16_is_fast_with_its_instructions(tmp_path: Path, flags: str | None, fast: bool) -> None:
    assert cpu_detection.detect(machine(tmp_path, flags=flags)).bfloat16 is fast


def test_this_machine_has_cores() -> None:
    assert 1 <= cpu_detection.detect().cores <= (os.cpu_count() or 1)
    assert Cpu().cores == 1
