"""Describes the machine (versions, GPU, compiler), and checks that transformers has the parts that the stages use."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import platform
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import torch

from gpu_check.running.finding import Finding
from gpu_check.running.measure import mib
from gpu_check.running.setup import Setup

_VERSIONS = ("torch", "triton", "transformers", "msgspec", "pyzmq", "numpy")
_MODELING = "transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe"

HOOKS = {
    "Qwen3OmniMoeAudioEncoder": ("padded_feature", "chunk_lengths", "valid_indices", "cu_seqlens"),
    "Qwen3OmniMoeVisionEncoder": ("pooler_output", "deepstack_features", "cu_seqlens"),
    "Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration": ("codec_embedding", "lm_head"),
    "Qwen3OmniMoeCode2Wav": ("code_embedding", "code_offset", "pre_transformer", "upsample", "decoder"),
    "Qwen3OmniMoeCausalConvNet": ("conv", "padding"),
    "Qwen3OmniMoeCausalTransConvNet": ("conv", "left_pad"),
    "Qwen3OmniMoeConvNeXtBlock": ("dwconv", "pwconv1", "pwconv2", "gamma"),
    "Qwen3OmniMoeSnakeBeta": ("alpha", "beta", "no_div_by_zero"),
    "Qwen3OmniMoeCode2WavDecoderResidualUnit": ("act1", "conv1", "act2", "conv2"),
    "Qwen3OmniMoeCode2WavDecoderBlock": ("block",),
}
"""The keys are classes of the library transformers that the stages use. Each value names the parts of the class that
the stages depend on. The source of the modeling module must contain all these names.
"""


def run(setup: Setup) -> Iterator[Finding]:
    yield Finding("machine", *_machine(setup.device))
    missing = missing_hooks(importlib.import_module(_MODELING))
    yield Finding("machine: hooks of transformers", not missing, {"missing": missing, "looked_for": len(HOOKS)})


def missing_hooks(module: Any) -> list[str]:
    """The entries of `HOOKS` that a modeling module lacks."""
    source = inspect.getsource(module)
    missing = []
    for name, words in HOOKS.items():
        if not hasattr(module, name):
            missing.append(name)
        missing += [f"{name}: {word}" for word in words if word not in source]
    return missing


def _machine(device: str) -> tuple[bool, dict[str, Any]]:
    figures: dict[str, Any] = {"python": platform.python_version(), "nvcc": _nvcc()}
    figures |= {name: _version(name) for name in _VERSIONS}
    if device == "cpu":
        return True, figures | {"device": "cpu"}
    usable = torch.cuda.is_available()
    figures |= {"cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}
    if usable:
        properties = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        figures |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "total_mib": mib(total),
            "free_mib": mib(free),
        }
    return usable, figures


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvcc() -> str | None:
    path = shutil.which("nvcc")
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=20).stdout
    return next((line.strip() for line in said.splitlines() if "release" in line), path)
