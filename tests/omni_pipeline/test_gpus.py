"""Which GPUs there are: described in words, or seen by the driver."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from omni_pipeline import gpus
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu, _visible, capability, detect, least_free, memory_used, parse
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
    with pytest.raises(StartupError, match="write 1xH100-80GB"):
        parse(description)


def test_size_in_any_unit() -> None:
    assert [parse_size(text) for text in ("1GiB", "1.5 GB", "3MiB", "2 MB")] == [GIB, 1_500_000_000, 3 * MIB, 2_000_000]


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_do_not_count(hidden: str) -> None:
    assert detect({"CUDA_VISIBLE_DEVICES": hidden}) == ()


THERE = [Gpu(index, f"card{index}", index + 1, f"GPU-{letter}00{index}") for index, letter in enumerate("abc")]


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [("card0", "0"), ("card1", "1"), ("card2", "2")]),
        ("2,0", [("card2", "2"), ("card0", "0")]),
        ("GPU-b", [("card1", "GPU-b")]),
        ("1,7,0", [("card1", "1")]),
    ],
)
def test_visible_gpus_are_counted_from_zero_in_the_order_given(
    visible: str | None, seen: list[tuple[str, str]]
) -> None:
    found = _visible(THERE, visible)
    assert [(gpu.name, gpu.device) for gpu in found] == seen
    assert [gpu.index for gpu in found] == list(range(len(seen)))


class Driver:
    """NVML with three cards, of which each has so many MiB in use as it has in all, less one."""

    NVMLError = RuntimeError
    nvmlInit = nvmlShutdown = staticmethod(lambda: None)
    nvmlDeviceGetCount = staticmethod(lambda: len(THERE))
    nvmlDeviceGetHandleByIndex = staticmethod(lambda index: THERE[index])
    nvmlDeviceGetCudaComputeCapability = staticmethod(lambda handle: [9, handle.index])
    nvmlDeviceGetName = staticmethod(lambda handle: handle.name)
    nvmlDeviceGetUUID = staticmethod(lambda handle: handle.device)
    nvmlDeviceGetMemoryInfo = staticmethod(lambda handle: SimpleNamespace(total=handle.memory, used=handle.memory - 1))


@pytest.mark.parametrize("visible", [None, "2,0", "GPU-b", "GPU-c002,GPU-a000"])
def test_memory_in_use_is_that_of_the_visible_gpus(visible: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver)
    seen = _visible(THERE, visible)
    assert memory_used(seen) == {gpu.index: gpu.memory - 1 for gpu in seen}


def test_capability_is_that_of_the_card_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver)
    assert [capability(gpu) for gpu in _visible(THERE, "2,GPU-b")] == [(9, 2), (9, 1)]


def test_gpu_with_the_least_free_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver)
    monkeypatch.setattr(gpus, "detect", lambda: _visible(THERE, "2,1"))
    assert least_free() == (1, THERE[1].memory)
