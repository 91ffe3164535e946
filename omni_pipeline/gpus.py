"""Finds the GPUs that this process may use, without starting CUDA, and parses descriptions of GPUs.

A card that MIG divides does not count as a GPU. Instead, each MIG instance of the card counts as a GPU.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from msgspec import Struct

from omni_pipeline.errors import StartupError
from omni_pipeline.sizes import MIB, parse_size

Answer = TypeVar("Answer")


# The memory in MiB that the driver reports for well-known cards, keyed by the card's name and its nominal size in GB.
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

# Maps each compute capability to words. Each word occurs in the names or descriptions of cards that have this
# capability.
_CAPABILITIES = {
    (7, 0): ("V100",),
    (7, 5): ("T4", "RTX 2080", "RTX 8000"),
    (8, 0): ("A100", "A30"),
    (8, 6): ("A10", "A10G", "A16", "A40", "A6000", "RTX 3090", "RTX3090"),
    (8, 9): ("L4", "L40", "L40S", "RTX 4090", "RTX4090", "RTX 6000 Ada"),
    (9, 0): ("H100", "H200", "H20", "H800", "GH200"),
    (10, 0): ("B200", "GB200"),
    (12, 0): ("RTX 5090", "RTX5090"),
}

_KIND = re.compile(
    r"(?:(?P<count>[0-9]+)\s*[x×*]\s*)?(?:(?P<name>[\w.]+)-)?(?P<size>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>GiB|GB)"
)


class Gpu(Struct, frozen=True):
    """One GPU.

    Attributes:
        index: Number of the GPU in this server, counted from 0 among the GPUs that the server may see. If a deployment
            has several hosts, the GPUs of the main host come first, and each GPU of the deployment has its own index.
        name: Name of the GPU from the driver, or from the description.
        memory: Total bytes.
        device: The GPU's entry in ``CUDA_VISIBLE_DEVICES``. For an undivided card, the entry is the driver's index,
            because some libraries accept only an index. A MIG instance has no index, so the entry is its unique id.
            On different hosts, GPUs can have the same entry.
        host: Name of the GPU's host; empty for the host of the main process.
        offset: `index` of the first GPU of the same host.
    """

    index: int
    name: str
    memory: int
    device: str
    host: str = ""
    offset: int = 0

    @property
    def number(self) -> int:
        """Number of the GPU on its own host, counted from 0. Operators know the GPU by this number."""
        return self.index - self.offset

    @property
    def title(self) -> str:
        """The GPU in messages: ``GPU 0``, or ``GPU 0 of b`` for a GPU of the host b."""
        return f"GPU {self.number} of {self.host}" if self.host else f"GPU {self.number}"

    @property
    def label(self) -> str:
        """The GPU in messages, with its name: ``GPU 0 (H100-80GB)``."""
        return f"{self.title} ({self.name})"

    @property
    def is_mig(self) -> bool:
        """Whether the GPU is a MIG instance, which is a part of a card."""
        return self.device.startswith("MIG-")


class _Listed(Struct, Generic[Answer], frozen=True):
    """One entry of the driver's list: a card, or a MIG instance.

    Attributes:
        names: The entries with which ``CUDA_VISIBLE_DEVICES`` can select the card or instance. `Gpu.device` comes
            first. In ``CUDA_VISIBLE_DEVICES``, an index must be complete. Any other entry may be shortened to its
            beginning.
        instances: Ids of the MIG instances of a card that MIG divides; None for any other card. Programs can run on the
            instances, but not on the divided card itself.
        answer: NVML's answer to the argument `question` of `_each_gpu`; None for a divided card.
    """

    names: tuple[str, ...]
    name: str
    memory: int
    answer: Answer
    instances: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return f"{self.names[0]} ({', '.join((*self.names[1:2], self.name))})"


def parse(description: str) -> tuple[Gpu, ...]:
    """The GPUs of a description: ``2xH100-80GB``, ``4x24GB``, ``H20-96GB,L4-24GB``.

    Well-known cards get the memory that their driver reports. For other cards, GB means 10⁹ bytes and GiB means 2³⁰
    bytes.

    Raises:
        StartupError: the description cannot be understood.
    """
    gpus: list[Gpu] = []
    for part in description.split(","):
        found = _KIND.fullmatch(part.strip())
        if found is None or found["count"] == "0":
            raise StartupError(
                f"Cannot read the GPU description {part.strip()!r}: write a description such as 1xH100-80GB, "
                "4x24GB or H20-96GB,L4-24GB."
            )
        name, size, unit = found["name"] or "GPU", found["size"], found["unit"]
        reported = _REPORTED.get((name.upper(), size)) if unit == "GB" else None
        memory = reported * MIB if reported else parse_size(size + unit)
        for _ in range(int(found["count"] or 1)):
            gpus.append(Gpu(len(gpus), f"{name}-{size}{unit}", memory, str(len(gpus))))
    return tuple(gpus)


def detect(environment: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that this process may use, in the order of ``CUDA_VISIBLE_DEVICES``. If this variable is not set,
    the GPUs are in the order of the PCI bus.

    Raises:
        StartupError: the machine has GPUs but the driver does not answer, or ``CUDA_VISIBLE_DEVICES`` contains a GPU
            that does not exist.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "none", "NoDevFiles"):
        return ()
    return _visible(_each_gpu(lambda nvml, handle, card: None) if _has_device_files() else [], visible)


def least_free() -> tuple[int, int]:
    """Free bytes and total bytes of one GPU: the one with the least free memory among those that this process sees."""
    own = detect()
    used = memory_used(own)
    return min((gpu.memory - used[gpu.index], gpu.memory) for gpu in own)


def memory_used(gpus: Sequence[Gpu]) -> dict[int, int]:
    """Bytes that all processes together now use on each of these GPUs, by the index of the GPU.

    Raises:
        StartupError: the driver does not answer.
    """
    return _answers(gpus, lambda nvml, handle, card: int(nvml.nvmlDeviceGetMemoryInfo(handle).used))


def known_capability(gpu: Gpu) -> tuple[int, int] | None:
    """Compute capability of a GPU in this or another machine, derived from its name. None for an unknown name."""
    for found, names in _CAPABILITIES.items():
        if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", gpu.name) for name in names):
            return found
    return None


def capability(gpu: Gpu) -> tuple[int, int]:
    """Compute capability of a GPU, such as (9, 0) for Hopper. Raises StartupError if the driver does not answer."""
    answers = _answers([gpu], lambda nvml, handle, card: nvml.nvmlDeviceGetCudaComputeCapability(card))
    major, minor = answers[gpu.index]
    return int(major), int(minor)


def _has_device_files() -> bool:
    return bool(glob.glob("/dev/nvidia[0-9]*")) or os.path.exists("/dev/dxg")


def _visible(there: Sequence[_Listed[Any]], visible: str | None) -> tuple[Gpu, ...]:
    """The GPUs that `visible` lists, numbered in the order of the list; every GPU if `visible` is None.

    CUDA silently ends the list at the first entry that selects no GPU. With such a shorter list, the server would run
    on fewer GPUs than the operator intended, or on the CPU. So we refuse an entry that selects no GPU. The only
    exception is the entry -1: it ends the list here too, because CUDA documents this use of -1.
    """
    if visible is None:
        chosen = [listed for listed in there if listed.instances is None]
        if there and not chosen:
            raise StartupError(
                f"GPU {there[0]} is in MIG mode but has no instance to run on: make one (nvidia-smi mig -cgi …), "
                "switch MIG off, or pass --device cpu."
            )
    else:
        chosen = []
        for entry in filter(None, map(str.strip, visible.split(","))):
            if entry == "-1":
                break
            listed = _named(entry, there)
            if listed in chosen:
                raise _misnamed(f"{entry!r} selects GPU {listed} a second time", there)
            chosen.append(listed)
    return tuple(Gpu(index, gpu.name, gpu.memory, gpu.names[0]) for index, gpu in enumerate(chosen))


def _named(entry: str, there: Sequence[_Listed[Any]]) -> _Listed[Any]:
    """The GPU that an entry of ``CUDA_VISIBLE_DEVICES`` selects. Raises StartupError if the entry does not select
    exactly one usable GPU.
    """
    exact = [listed for listed in there if entry in listed.names]
    whole_id = re.match("(GPU|MIG)-.", entry)
    found = exact or [listed for listed in there if whole_id and any(name.startswith(entry) for name in listed.names)]
    if len(found) != 1:
        raise _misnamed(f"{entry!r} selects {'more than one GPU' if found else 'no GPU'}", there)
    if found[0].instances is not None:
        instances = (
            ", ".join(found[0].instances) or "this GPU has no instances; make instances with nvidia-smi mig -cgi"
        )
        raise _misnamed(f"{entry!r} selects a GPU that MIG divides; list its instances instead ({instances})", there)
    return found[0]


def _misnamed(what: str, there: Iterable[_Listed[Any]]) -> StartupError:
    known = ", ".join(str(listed) for listed in there if listed.instances is None)
    return StartupError(
        f"CUDA_VISIBLE_DEVICES: {what}. On this machine: {known or 'no GPU'}. "
        "Correct the variable, unset it to use all GPUs, or pass --device cpu."
    )


def _answers(gpus: Sequence[Gpu], question: Callable[[Any, Any, Any], Answer]) -> dict[int, Answer]:
    """NVML's answer to a question about each of these GPUs, keyed by the GPU's index; see `_each_gpu`."""
    answers = {listed.names[0]: listed.answer for listed in _each_gpu(question) if listed.instances is None}
    return {gpu.index: answers[gpu.device] for gpu in gpus if gpu.device in answers}


def _each_gpu(question: Callable[[Any, Any, Any], Answer]) -> list[_Listed[Any]]:
    """All GPUs that the driver lists, including GPUs that this process may not use. Each entry has NVML's answer to a
    question about the GPU.

    Args:
        question: Called with NVML, a handle of the GPU, and a handle of its card. The two handles differ for a MIG
            instance.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise StartupError(
            f"There is a GPU, but the NVIDIA driver does not answer ({error}): check whether nvidia-smi works. "
            "To compute on the CPU, pass --device cpu."
        ) from error
    try:
        listed: list[_Listed[Any]] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            card = pynvml.nvmlDeviceGetHandleByIndex(index)
            names = (str(index), str(pynvml.nvmlDeviceGetUUID(card)))
            instances = _mig_instances(pynvml, card)
            if instances is None:
                listed.append(_described(pynvml, names, card, question(pynvml, card, card)))
                continue
            parts = [(_mig_names(pynvml, names[1], instance), instance) for instance in instances]
            # Ask a divided card only for its name, because other questions, for example about its memory, may need
            # special rights.
            name = str(pynvml.nvmlDeviceGetName(card))
            listed.append(_Listed(names, name, 0, None, tuple(part[0] for part, _ in parts)))
            for part, instance in parts:
                listed.append(_described(pynvml, part, instance, question(pynvml, instance, card)))
        return listed
    finally:
        pynvml.nvmlShutdown()


def _mig_instances(nvml: Any, card: Any) -> list[Any] | None:
    """Handles of a card's MIG instances; None if the card is not divided."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(card)
    except nvml.NVMLError:  # the card or the driver does not support MIG
        return None
    if current != nvml.NVML_DEVICE_MIG_ENABLE:
        return None
    handles = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            handles.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, place))
        except nvml.NVMLError:  # there is no instance with this number
            continue
    return handles


def _mig_names(nvml: Any, card: str, instance: Any) -> tuple[str, ...]:
    """The unique id of a MIG instance, and its older name, which consists of the card's id and two numbers."""
    numbers = nvml.nvmlDeviceGetGpuInstanceId(instance), nvml.nvmlDeviceGetComputeInstanceId(instance)
    return str(nvml.nvmlDeviceGetUUID(instance)), "/".join(map(str, (f"MIG-{card}", *numbers)))


def _described(nvml: Any, names: tuple[str, ...], handle: Any, answer: Any) -> _Listed[Any]:
    memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return _Listed(names, str(nvml.nvmlDeviceGetName(handle)), memory, answer)
