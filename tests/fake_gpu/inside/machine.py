"""Lists the GPUs that torch, NVML and nvidia-smi report."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import torch

from omni_pipeline import gpus


def described() -> dict[str, Any]:
    """The GPUs that this process sees, according to three sources: torch, NVML (through this project's own code), and
    nvidia-smi.
    """
    found = gpus.detect()
    used = gpus.memory_used(found)
    smi = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "torch": [[each.name, [each.major, each.minor], each.total_memory] for each in properties],
        "detected": [[gpu.name, gpu.memory, gpu.device] for gpu in found],
        "capability": [gpus.capability(gpu) for gpu in found],
        "used": [used[gpu.index] for gpu in found],
        "smi": subprocess.run(smi, capture_output=True, text=True, check=True).stdout.split(),
    }


def nvml_instances() -> list[list[Any]]:
    """UUID and bytes of every MIG instance that NVML reports."""
    import pynvml

    pynvml.nvmlInit()
    found: list[list[Any]] = []
    for card in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(card)
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            except pynvml.NVMLError:
                break
            found.append([pynvml.nvmlDeviceGetUUID(instance), pynvml.nvmlDeviceGetMemoryInfo(instance).total])
    return found


def failing(what: str) -> None:
    """Fail in the way that `what` names."""
    print("last words")
    if what == "raise":
        raise ValueError("a wrong value")
    if what == "compute":
        torch.zeros(2, device="cuda")
    if what == "hang":
        while True:
            pass
    os._exit(3)


def poison() -> bool:
    """Change this process. Returns False if an earlier call has already changed the process."""
    untouched = not hasattr(torch, "poisoned")
    torch.poisoned = True
    return untouched
