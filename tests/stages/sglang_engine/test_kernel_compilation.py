"""The kernels that SGLang has only as source code can be compiled with the toolkit that a worker on a GPU gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni_pipeline.kernels import cuda_toolkit, toolchain

# Every engine on a GPU compiles this kernel at its first step. It is smaller than the other kernels.
SMALL_KERNEL = """
import torch
from sglang.kernels.jit.utils import arch
from sglang.kernels.ops.attention import clamp_position

with arch.override_jit_cuda_arch(9, 0):
    print(clamp_position._jit_clamp_position_module(torch.int64).clamp_position)
"""


def test_sglang_compiles_a_kernel_for_hopper_without_an_installed_toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test covers all steps from the generated build file to the loaded module. These steps need no GPU."""
    monkeypatch.setattr(cuda_toolkit, "USUAL", tmp_path / "no-cuda")
    bare = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    bare |= {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path)}
    environment = toolchain.prepared(bare)
    assert environment["CUDA_HOME"].startswith(str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SMALL_KERNEL],
        env=environment | {"SGLANG_JIT_CACHE_DIR": str(tmp_path / "jit"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Function" in done.stdout
    (build,) = (tmp_path / "jit").rglob("build.ninja")
    assert f"nvcc = {environment['CUDA_HOME']}/bin/nvcc" in build.read_text()
    assert "code=sm_90a" in build.read_text()
