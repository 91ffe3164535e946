"""The check of a GPU machine compiles a kernel, or reports why it cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gpu_check.machine import compiles

from omni_pipeline.kernels import toolchain
from omni_pipeline.kernels.cuda_toolkit import PARTS


def test_kernel_is_compiled_for_every_kind_of_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    check = compiles({"89", "90"})
    assert check.passed, check.detail
    assert check.detail == toolchain.prepared(os.environ)["CUDA_HOME"]


def test_toolkit_that_compiles_nothing_is_told_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in PARTS:
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_text("#!/bin/sh\necho no licence >&2; exit 3\n")
        (tmp_path / part).chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    check = compiles({"90"})
    assert not check.passed
    assert check.detail == f"{tmp_path}: no licence"


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    check = compiles({"90"})
    assert not check.passed
    assert "lacks bin/nvcc" in check.detail
