"""Describes the machine (GPUs, driver, versions), and checks that CUDA's results equal the CPU's results."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_check.report import Check, Report, table
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import detect, memory_used
from omni_pipeline.kernels import toolchain
from omni_pipeline.kernels.cuda_toolkit import driver_library

GIB = 1024**3

# This program runs in a separate process, so that the process of the report never has a CUDA context.
_PROBE = """
import json, torch
from torch.nn import functional
torch.manual_seed(0)
a, b = torch.randn(256, 256), torch.randn(256, 256)
images, kernel = torch.randn(1, 8, 32, 32), torch.randn(8, 8, 3, 3)
found = {"cuda": torch.version.cuda, "devices": []}
for index in range(torch.cuda.device_count()):
    properties = torch.cuda.get_device_properties(index)
    device = torch.device("cuda", index)
    product = (a.to(device) @ b.to(device)).cpu()
    filtered = functional.conv2d(images.to(device), kernel.to(device)).cpu()
    found["devices"].append({
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "product": (product - a @ b).abs().max().item(),
        "filtered": (filtered - functional.conv2d(images, kernel)).abs().max().item(),
    })
print(json.dumps(found))
"""

# A kernel that includes the headers that most kernels include: those of half precision and of CCCL.
_KERNEL = """
#include <cuda/std/type_traits>
#include <cuda_bf16.h>
__global__ void twice(__nv_bfloat16* x) { x[threadIdx.x] += x[threadIdx.x]; }
extern "C" int run(void* x) { twice<<<1, 32>>>((__nv_bfloat16*)x); return cudaGetLastError(); }
"""

# Allowed error of a sum of 256 products of normally distributed numbers. The usual error is about 1e-5 in float32, and
# about 1e-2 in TF32.
_SAME = 0.1


@dataclass(frozen=True)
class Memory:
    """Memory of one GPU in bytes, as its driver counts it."""

    name: str
    total: int
    used: int


def gpu_memory() -> list[Memory]:
    """All GPUs that this process may use, possibly none. Raises StartupError if the driver fails."""
    gpus = detect()
    used = memory_used(gpus) if gpus else {}
    return [Memory(gpu.name, gpu.memory, used[gpu.index]) for gpu in gpus]


def look(report: Report, device: str) -> bool:
    """Describe the machine, and check CUDA if the run needs it. Returns whether the device is usable."""
    versions = [(name, importlib.metadata.version(name)) for name in ("sglang", "torch", "transformers")]
    rows = [("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}")]
    rows += [("commit", commit()), *versions, ("processors", str(os.cpu_count()))]
    if device == "cpu":
        report.describe(table(("", ""), rows), Check("GPU", None, "this run is on the CPU"))
        return True
    memory, problem = _driver()
    rows += [(f"GPU {index}", f"{one.name}, {one.total / GIB:.1f} GiB") for index, one in enumerate(memory)]
    probe: dict[str, Any] = _probe() if memory else {"devices": [], "error": "no GPU was found"}
    rows += [("CUDA of torch", str(probe.get("cuda"))), ("driver", driver_version() if memory else "?")]
    driver = Check("the driver answers", bool(memory), problem)
    capabilities = {device["capability"].replace(".", "") for device in probe["devices"]}
    checks = [driver, *judge(memory, probe), *([compiles(capabilities)] if capabilities else [])]
    report.describe(table(("", ""), rows), *checks)
    return all(check.passed for check in checks if not check.name.endswith("is free"))


def driver_version() -> str:
    """The driver's version, and the newest CUDA version that it supports."""
    import pynvml

    try:
        pynvml.nvmlInit()
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion())
        return f"{pynvml.nvmlSystemGetDriverVersion()}, for CUDA up to {cuda // 1000}.{cuda % 1000 // 10}"
    except pynvml.NVMLError as error:
        return f"unknown ({error})"


def _driver() -> tuple[list[Memory], str]:
    try:
        return gpu_memory(), ""
    except StartupError as error:
        return [], str(error)


def _probe() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        return {"devices": [], "error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it crashed"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def judge(memory: list[Memory], probe: dict[str, Any]) -> list[Check]:
    """Checks that torch sees all GPUs, that each GPU computes correctly, and that no other process uses it.

    Args:
        probe: The output of `_PROBE`. If the probe failed, an empty list of devices and an error message.
    """
    devices = probe["devices"]
    checks = [Check("torch sees every GPU", len(devices) == len(memory) > 0, str(probe.get("error", "")))]
    for index, (one, device) in enumerate(zip(memory, devices, strict=False)):
        worst = max(device["product"], device["filtered"])
        checks.append(Check(f"GPU {index} computes like the CPU", worst < _SAME, f"off by {worst:.1e} at most"))
        checks.append(
            Check(f"GPU {index} is free", one.used < 0.02 * one.total, f"{one.used / GIB:.1f} GiB are already in use")
        )
    return checks


def compiles(capabilities: Iterable[str]) -> Check:
    """Checks that a worker can compile a kernel for each of these capabilities (such as 90), and names the toolkit.

    Some kernels link the driver's library. So the kernel of this check links the library too, if the machine has it.
    """
    name = "kernels can be compiled"
    missing = toolchain.find(os.environ).missing
    if missing:
        return Check(name, False, "; ".join(missing))
    environment = toolchain.prepared(os.environ)
    home = environment["CUDA_HOME"]
    driver = ["-lcuda"] if driver_library(os.environ) else []
    with tempfile.TemporaryDirectory(prefix="omni-kernel-") as directory:
        Path(directory, "kernel.cu").write_text(_KERNEL)
        for capability in sorted(capabilities):
            target = f"{capability}a" if capability == "90" else capability
            for command in (
                [f"{home}/bin/nvcc", f"-gencode=arch=compute_{target},code=sm_{target}", "-Xcompiler", "-fPIC", "-c",
                 "kernel.cu", "-o", "kernel.o"],
                [environment.get("CXX", "c++"), "-shared", "kernel.o", f"-L{home}/lib64", f"-L{home}/lib64/stubs",
                 "-lcudart", *driver, "-o", "kernel.so"],
            ):  # fmt: skip
                done = subprocess.run(
                    command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300, check=False
                )
                if done.returncode:
                    return Check(name, False, f"{home}: {(done.stderr.strip() or 'it crashed')[:400]}")
    return Check(name, True, home)


def commit() -> str:
    """The commit that is checked out, marked with ``-dirty`` if files differ from the commit."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True, text=True, check=False, cwd=os.path.dirname(__file__),
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
