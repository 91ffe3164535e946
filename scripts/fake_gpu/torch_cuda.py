"""Makes `torch.cuda` describe the GPUs of a machine. Computing on these GPUs still fails."""

from __future__ import annotations

import contextlib
import os
import types
from collections.abc import Iterator
from typing import Any

import torch

from fake_gpu.machine import FakeDevice, Machine

_WARP = 32
_SHARED_BYTES = 232448
_L2_BYTES = 50 * 1024**2
_REGISTERS = 65536


class Stream:
    """Serves both as a fake CUDA stream and as a fake CUDA event. It never waits."""

    cuda_stream = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.device = torch.device("cuda", 0)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def record_event(self, *arguments: Any) -> Stream:
        return self

    def _nothing(self, *arguments: Any) -> None:
        pass

    wait = wait_stream = wait_event = synchronize = record = _nothing


def install(machine: Machine) -> None:
    """Make torch describe `machine`. ``CUDA_VISIBLE_DEVICES`` is read again at each call."""

    def visible() -> tuple[FakeDevice, ...]:
        return machine.visible(os.environ)

    current = [0]

    def device(which: Any = None) -> FakeDevice:
        index = current[0] if which is None else _index(which, current[0])
        there = visible()
        if index >= len(there):
            raise RuntimeError(f"CUDA error: invalid device ordinal ({index} of {len(there)})")
        return there[index]

    def set_device(which: Any) -> None:
        device(which)
        current[0] = _index(which, current[0])

    @contextlib.contextmanager
    def entered(which: Any) -> Iterator[None]:
        before = current[0]
        set_device(before if which is None else which)
        try:
            yield
        finally:
            current[0] = before

    def memory(which: Any = None) -> tuple[int, int]:
        found = device(which)
        return found.usable - machine.used_mib * 1024**2, found.usable

    replaced: dict[str, Any] = {
        "is_available": lambda: bool(visible()),
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "device_count": lambda: len(visible()),
        "current_device": lambda: current[0],
        "set_device": set_device,
        "device": entered,
        "get_device_capability": lambda which=None: device(which).capability,
        "get_device_properties": lambda which=None: _properties(device(which)),
        "get_device_name": lambda which=None: device(which).name,
        "get_arch_list": lambda: ["sm_90"],
        "mem_get_info": memory,
        "memory_allocated": lambda which=None: 0,
        "memory_reserved": lambda which=None: 0,
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": lambda which=None: None,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "Stream": Stream,
        "Event": Stream,
        "current_stream": lambda which=None: Stream(),
        "default_stream": lambda which=None: Stream(),
        "stream": lambda stream: contextlib.nullcontext(stream),
        "set_stream": lambda stream: None,
    }
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)


def _index(which: Any, current: int) -> int:
    if isinstance(which, int):
        return which
    index = torch.device(which).index
    return current if index is None else index


def _properties(device: FakeDevice) -> Any:
    major, minor = device.capability
    return types.SimpleNamespace(
        name=device.name,
        major=major,
        minor=minor,
        total_memory=device.usable,
        multi_processor_count=device.multiprocessors,
        uuid=device.uuid.partition("-")[2],
        shared_memory_per_block_optin=_SHARED_BYTES,
        L2_cache_size=_L2_BYTES,
        warp_size=_WARP,
        regs_per_multiprocessor=_REGISTERS,
        is_integrated=False,
    )
