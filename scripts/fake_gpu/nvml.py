"""Makes NVML (`pynvml`) describe the GPUs of a machine."""

from __future__ import annotations

import types
from typing import Any

import pynvml

from fake_gpu.machine import FakeDevice, Machine


def install(machine: Machine) -> None:
    """Make NVML describe `machine`. All other functions of NVML report that they are not supported."""
    for name in dir(pynvml):
        if name.startswith("nvml") and callable(getattr(pynvml, name)) and not isinstance(getattr(pynvml, name), type):
            setattr(pynvml, name, _unsupported(name))
    for name, answer in _answers(machine).items():
        setattr(pynvml, name, answer)


def _unsupported(name: str) -> Any:
    def ask(*arguments: Any) -> Any:
        error = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        error.add_note(f"{name} is not answered by the fake driver")
        raise error

    return ask


def _answers(machine: Machine) -> dict[str, Any]:
    """The replacements for NVML's functions, keyed by the name of the function. Handles are `FakeDevice` objects."""
    cards = machine.devices
    everything = [device for card in cards for device in (card, *machine.instances(card.card))]

    def by_index(index: int) -> FakeDevice:
        if not 0 <= index < len(cards):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return cards[index]

    def by_uuid(uuid: Any) -> FakeDevice:
        text = uuid.decode() if isinstance(uuid, bytes) else uuid
        found = next((device for device in everything if device.uuid == text), None)
        if found is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found

    def instance(handle: FakeDevice, number: int) -> FakeDevice:
        there = machine.instances(handle.card)
        if number >= len(there):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return there[number]

    def memory(handle: FakeDevice, version: Any = None) -> Any:
        used = machine.used_mib * 1024**2
        return types.SimpleNamespace(total=handle.memory, used=used, free=handle.memory - used)

    def mig_mode(handle: FakeDevice) -> list[int]:
        if handle.uuid.startswith("MIG-"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        on = int(bool(machine.instances(handle.card)))
        return [on, on]

    return {
        "nvmlInit": lambda: None,
        "nvmlInitWithFlags": lambda flags: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.82.07",
        "nvmlSystemGetCudaDriverVersion": lambda: 13000,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": by_index,
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetIndex": lambda handle: handle.card,
        "nvmlDeviceGetName": lambda handle: handle.name,
        "nvmlDeviceGetUUID": lambda handle: handle.uuid,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetCudaComputeCapability": lambda handle: list(handle.capability),
        "nvmlDeviceGetMigMode": mig_mode,
        "nvmlDeviceIsMigDeviceHandle": lambda handle: int(handle.uuid.startswith("MIG-")),
        "nvmlDeviceGetMaxMigDeviceCount": lambda handle: 7 if machine.instances(handle.card) else 0,
        "nvmlDeviceGetMigDeviceHandleByIndex": instance,
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda handle: cards[handle.card],
    }
