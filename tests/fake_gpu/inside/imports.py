"""Finds the imports that fail in a process with fake GPUs."""

from __future__ import annotations

import importlib
import sys

import torch


def missing(names: list[list[str]]) -> list[str]:
    """The given modules, and the given names in modules, that do not exist."""
    absent = []
    for module, name in names:
        if name and not hasattr(importlib.import_module(module), name):
            try:
                importlib.import_module(f"{module}.{name}")
            except ImportError:
                absent.append(f"{module}.{name}")
    return absent


def platform() -> dict[str, str | bool]:
    """The platform that SGLang detects, and the kernel library that it has loaded."""
    from sglang.srt.platforms import current_platform

    return {
        "device": current_platform.device_type,
        "ours": type(current_platform).__module__.startswith("stages."),
        "kernels": str(sys.modules["sgl_kernel"].__file__) if hasattr(sys.modules["sgl_kernel"], "__file__") else "",
        "operations": hasattr(torch.ops.sgl_kernel, "fused_add_rmsnorm"),
    }
