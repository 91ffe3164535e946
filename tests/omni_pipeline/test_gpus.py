"""GPUs are read from a description, or from the driver's list."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
from msgspec import Struct

from omni_pipeline import gpus
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import capability, detect, least_free, memory_used, parse
from omni_pipeline.sizes import MIB, parse_size

GIB = 1024**3


@pytest.mark.parametrize(
    ("description", "memories"),
    [
        ("1xH100-80GB", [81559 * MIB]),
        ("H20-96GB", [97871 * MIB]),
        ("2 x h200-141GB", [143771 * MIB] * 2),
        ("4×24GB", [24 * 10**9] * 4),
        ("2xMine-80GiB", [80 * GIB] * 2),
        ("H100-80GB,L4-24GB", [81559 * MIB, 23034 * MIB]),
        ("RTX5090-31.5GiB", [int(31.5 * GIB)]),
    ],
)
def test_description_gives_what_a_driver_would_report(description: str, memories: list[int]) -> None:
    gpus = parse(description)
    assert [gpu.memory for gpu in gpus] == memories
    assert [(gpu.index, gpu.device) for gpu in gpus] == [(index, str(index)) for index in range(len(memories))]


@pytest.mark.parametrize("description", ["", "H100", "0xH100-80GB", "2x", "80", "H100-80GB;L4-24GB", "H100-80TB"])
def test_description_that_says_nothing_is_refused(description: str) -> None:
    with pytest.raises(StartupError, match="write a description such as 1xH100-80GB"):
        parse(description)


def test_size_in_any_unit() -> None:
    assert [parse_size(text) for text in ("1GiB", "1.5 GB", "3MiB", "2 MB")] == [GIB, 1_500_000_000, 3 * MIB, 2_000_000]


class Failure(RuntimeError):
    """Stands in for an error of NVML."""


class Part(Struct, frozen=True):
    """A GPU card or a MIG instance. An instance has no compute capability of its own."""

    name: str
    uuid: str
    memory: int
    capability: tuple[int, int] | None = None
    places: tuple[Part | None, ...] | None = None  # the MIG instances of a divided card; None for a free place
    numbers: tuple[int, int] = (0, 0)


class Driver:
    """Stands in for NVML on a machine with some cards. On each card or instance, all bytes except one are in use."""

    NVMLError = Failure
    NVML_DEVICE_MIG_ENABLE = 1
    nvmlInit = nvmlShutdown = staticmethod(lambda: None)

    def __init__(self, *cards: Part) -> None:
        self.cards = cards

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Part:
        return self.cards[index]

    def nvmlDeviceGetName(self, handle: Part) -> str:
        return handle.name

    def nvmlDeviceGetUUID(self, handle: Part) -> str:
        return handle.uuid

    def nvmlDeviceGetMemoryInfo(self, handle: Part) -> SimpleNamespace:
        if handle.places is not None:
            raise Failure("insufficient permissions")  # this happens in a container that has only one instance
        return SimpleNamespace(total=handle.memory, used=handle.memory - 1)

    def nvmlDeviceGetCudaComputeCapability(self, handle: Part) -> list[int]:
        if handle.capability is None:
            raise Failure("not supported")
        return list(handle.capability)

    def nvmlDeviceGetMigMode(self, handle: Part) -> list[int]:
        if handle.capability is None or handle.capability < (8, 0):
            raise Failure("not supported")
        return [int(handle.places is not None), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Part) -> int:
        return len(handle.places or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Part, index: int) -> Part:
        part = (handle.places or ())[index]
        if part is None:
            raise Failure("not found")
        return part

    def nvmlDeviceGetGpuInstanceId(self, handle: Part) -> int:
        return handle.numbers[0]

    def nvmlDeviceGetComputeInstanceId(self, handle: Part) -> int:
        return handle.numbers[1]


CARDS = (
    Part("T4", "GPU-a000", 1, (7, 5)),
    Part("H100", "GPU-b001", 2, (9, 0)),
    Part("H200", "GPU-bc02", 3, (9, 1)),
)
SMALL, LARGE = Part("H100 MIG 1g.10gb", "MIG-11aa", 4, numbers=(7, 0)), Part("H100 MIG 3g.40gb", "MIG-22bb", 5)
DIVIDED = (*CARDS[:2], Part("H100", "GPU-d003", 99, (9, 0), places=(None, SMALL, LARGE)))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Simulates a machine with some cards."""

    def has(*cards: Part) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", Driver(*cards))
        monkeypatch.setattr(gpus, "_has_device_files", lambda: bool(cards))

    return has


def listed(value: str | None) -> dict[str, str]:
    return {} if value is None else {"CUDA_VISIBLE_DEVICES": value}


# Each row has a value of CUDA_VISIBLE_DEVICES, and the GPUs that are visible with this value. For each GPU, the row has
# two strings: the GPU's name, and the entry that selects the GPU in a worker's CUDA_VISIBLE_DEVICES.
WHOLE = [
    (None, [("T4", "0"), ("H100", "1"), ("H200", "2")]),
    ("0", [("T4", "0")]),
    ("2,0", [("H200", "2"), ("T4", "0")]),
    (" 2 , 0 ", [("H200", "2"), ("T4", "0")]),
    ("GPU-b0", [("H100", "1")]),
    ("GPU-bc02,GPU-a000", [("H200", "2"), ("T4", "0")]),
    ("1,GPU-a", [("H100", "1"), ("T4", "0")]),
    ("2,-1,0", [("H200", "2")]),
    ("", []),
    ("-1", []),
    ("NoDevFiles", []),
]
PARTS = [
    (None, [("T4", "0"), ("H100", "1"), (SMALL.name, "MIG-11aa"), (LARGE.name, "MIG-22bb")]),
    ("MIG-22bb", [(LARGE.name, "MIG-22bb")]),
    ("MIG-22,1", [(LARGE.name, "MIG-22bb"), ("H100", "1")]),
    ("MIG-GPU-d003/7/0,MIG-22bb", [(SMALL.name, "MIG-11aa"), (LARGE.name, "MIG-22bb")]),
    ("GPU-b", [("H100", "1")]),
]
MATRIX = [*((CARDS, *row) for row in WHOLE), *((DIVIDED, *row) for row in PARTS)]


@pytest.mark.parametrize(("cards", "visible", "seen"), MATRIX)
def test_gpus_are_counted_in_the_order_given_and_selected_by_what_workers_can_read(
    cards: Sequence[Part], visible: str | None, seen: list[tuple[str, str]], machine: Callable[..., None]
) -> None:
    machine(*cards)
    found = detect(listed(visible))
    assert [(gpu.name, gpu.device) for gpu in found] == seen
    assert [gpu.index for gpu in found] == list(range(len(seen)))
    assert [gpu.is_mig for gpu in found] == ["MIG" in gpu.name for gpu in found]
    # A worker that gets these entries as its CUDA_VISIBLE_DEVICES sees the same GPUs.
    own = detect(listed(",".join(gpu.device for gpu in found)))
    assert own == found
    assert memory_used(found) == {gpu.index: gpu.memory - 1 for gpu in found}


@pytest.mark.parametrize(
    ("cards", "visible", "said"),
    [
        (CARDS, "7", "'7' selects no GPU.*0 .GPU-a000, T4., 1 .GPU-b001, H100., 2 .GPU-bc02, H200.. Correct"),
        (CARDS, "1,7,0", "'7' selects no GPU"),
        (CARDS, "GPU-x", "'GPU-x' selects no GPU"),
        (CARDS, "GPU-", "'GPU-' selects no GPU"),
        (CARDS, "b001", "'b001' selects no GPU"),
        (CARDS, "MIG-11aa", "'MIG-11aa' selects no GPU"),
        (CARDS, "GPU-b", "'GPU-b' selects more than one GPU"),
        (CARDS, "1,GPU-b001", "'GPU-b001' selects GPU 1 .* a second time"),
        ((), "0", "'0' selects no GPU. On this machine: no GPU"),
        (DIVIDED, "2", "'2' selects a GPU that MIG divides; list its instances instead .MIG-11aa, MIG-22bb."),
        (DIVIDED, "GPU-d", "'GPU-d' selects a GPU that MIG divides"),
        (DIVIDED, "MIG-33", "'MIG-33' selects no GPU.*MIG-22bb .MIG-GPU-d003/0/0, H100 MIG 3g.40gb."),
        ((Part("H100", "GPU-d", 9, (9, 0), places=()),), None, "in MIG mode but has no instance"),
    ],
)
def test_entry_that_names_no_single_gpu_is_refused_and_those_that_are_there_are_named(
    cards: Sequence[Part], visible: str | None, said: str, machine: Callable[..., None]
) -> None:
    machine(*cards)
    with pytest.raises(StartupError, match=said):
        detect(listed(visible))


def test_machine_without_gpus_has_none(machine: Callable[..., None]) -> None:
    machine()
    assert detect({}) == detect({"CUDA_VISIBLE_DEVICES": ""}) == ()


def test_capability_is_that_of_the_card(machine: Callable[..., None]) -> None:
    machine(*DIVIDED)
    assert [capability(gpu) for gpu in detect({})] == [(7, 5), (9, 0), (9, 0), (9, 0)]


def test_gpu_with_the_least_free_memory_counts(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    machine(*CARDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    assert least_free() == (1, CARDS[1].memory)
