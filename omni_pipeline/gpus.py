"""The GPUs of a machine: those that this process may use, found without starting CUDA, or described in words."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from omni_pipeline.errors import StartupError
from omni_pipeline.sizes import MIB, parse_size

Answer = TypeVar("Answer")


# What the driver reports for cards whose name says less: MiB by name and nominal GB.
_REPORTED = {
    ("H100", "80"): 81559,
    ("H200", "141"): 143771,
    ("H20", "96"): 97871,
    ("A100", "80"): 81920,
    ("A100", "40"): 40960,
    ("L40S", "48"): 46068,
    ("L4", "24"): 23034,
    ("RTX4090", "24"): 24564,
    ("RTX3090", "24"): 24576,
}

_KIND = re.compile(
    r"(?:(?P<count>[0-9]+)\s*[x×*]\s*)?(?:(?P<name>[\w.]+)-)?(?P<size>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>GiB|GB)"
)


class Gpu(Struct, frozen=True):
    """One GPU.

    Attributes:
        index: As this server counts: from 0, among those it may see.
        name: As the driver calls it, or as described.
        memory: Bytes, all in all.
        device: What selects it in ``CUDA_VISIBLE_DEVICES``.
    """

    index: int
    name: str
    memory: int
    device: str


def parse(description: str) -> tuple[Gpu, ...]:
    """GPUs in words: ``2xH100-80GB``, ``4x24GB``, ``H20-96GB,L4-24GB``.

    Well-known cards have what their driver reports; of any other, GB is 10⁹ bytes and GiB 2³⁰.

    Raises:
        StartupError: it cannot be understood.
    """
    gpus: list[Gpu] = []
    for part in description.split(","):
        found = _KIND.fullmatch(part.strip())
        if found is None or found["count"] == "0":
            raise StartupError(
                f"Cannot understand the GPUs {part.strip()!r}: write 1xH100-80GB, 4x24GB or H20-96GB,L4-24GB."
            )
        name, size, unit = found["name"] or "GPU", found["size"], found["unit"]
        reported = _REPORTED.get((name.upper(), size)) if unit == "GB" else None
        memory = reported * MIB if reported else parse_size(size + unit)
        for _ in range(int(found["count"] or 1)):
            gpus.append(Gpu(len(gpus), f"{name}-{size}{unit}", memory, str(len(gpus))))
    return tuple(gpus)


def detect(environment: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that CUDA would let this process use, in the order of ``CUDA_VISIBLE_DEVICES`` or of the PCI bus.

    Raises:
        StartupError: there are some, but the driver does not answer.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "none", "NoDevFiles"):
        return ()
    if not (glob.glob("/dev/nvidia[0-9]*") or os.path.exists("/dev/dxg")):
        return ()
    return _visible(_ask_driver(), visible)


def least_free() -> tuple[int, int]:
    """Bytes free, and in all, of the one with the least free memory among the GPUs that this process sees."""
    own = detect()
    used = memory_used(own)
    return min((gpu.memory - used[gpu.index], gpu.memory) for gpu in own)


def _visible(there: list[Gpu], visible: str | None) -> tuple[Gpu, ...]:
    """Of the GPUs that are there (`device` is the unique id), those that are listed, numbered in that order.

    As CUDA does it, the list ends at the first entry that is not there.
    """
    if visible is None:
        return tuple(Gpu(gpu.index, gpu.name, gpu.memory, str(gpu.index)) for gpu in there)
    found: list[Gpu] = []
    for entry in filter(None, map(str.strip, visible.split(","))):
        gpu = next((gpu for gpu in there if str(gpu.index) == entry or gpu.device.startswith(entry)), None)
        if gpu is None:
            break
        found.append(Gpu(len(found), gpu.name, gpu.memory, entry))
    return tuple(found)


def memory_used(gpus: Sequence[Gpu]) -> dict[int, int]:
    """Bytes of each of these GPUs that are in use now, by whomever, by its index.

    Raises:
        StartupError: the driver does not answer.
    """
    return _answers(gpus, lambda nvml, handle: int(nvml.nvmlDeviceGetMemoryInfo(handle).used))


def capability(gpu: Gpu) -> tuple[int, int]:
    """Compute capability of a GPU, as in (9, 0) for Hopper. Raises StartupError."""
    major, minor = _answers([gpu], lambda nvml, handle: nvml.nvmlDeviceGetCudaComputeCapability(handle))[gpu.index]
    return int(major), int(minor)


def _answers(gpus: Sequence[Gpu], question: Callable[[Any, Any], Answer]) -> dict[int, Answer]:
    """NVML's answer to a question about each of these GPUs, by its index; see `_each_gpu`."""
    there = _each_gpu(question)
    return {
        gpu.index: answer
        for gpu in gpus
        for known, answer in there
        if gpu.device == str(known.index) or known.device.startswith(gpu.device)
    }


def _ask_driver() -> list[Gpu]:
    return [gpu for gpu, _ in _each_gpu(lambda nvml, handle: None)]


def _each_gpu(question: Callable[[Any, Any], Answer]) -> list[tuple[Gpu, Answer]]:
    """All GPUs, visible or not, with NVML's answer to a question about each; `device` is the unique id.

    Args:
        question: Called with NVML and a handle of it.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise StartupError(
            f"There is a GPU, but the NVIDIA driver does not answer ({error}): does nvidia-smi work? "
            "To compute on the CPU, pass --device cpu."
        ) from error
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [(_described(pynvml, index, handle), question(pynvml, handle)) for index, handle in enumerate(handles)]
    finally:
        pynvml.nvmlShutdown()


def _described(nvml: Any, index: int, handle: Any) -> Gpu:
    memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Gpu(index, nvml.nvmlDeviceGetName(handle), memory, nvml.nvmlDeviceGetUUID(handle))
