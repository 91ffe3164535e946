"""Measures the speed of copies to and from the device: of pageable and pinned memory, of float32 and bfloat16, of
gathered rows, and of messages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from gpu_check.running.finding import Finding
from gpu_check.running.measure import times
from gpu_check.running.setup import Setup
from omni_pipeline.wire.tensor import Tensor
from stages.sglang_engine.prompt_rows import PromptRows, Stretch, gather

ROWS, WIDTH = 8192, 2048
LAYERS = 3


def run(setup: Setup) -> Iterator[Finding]:
    rows = 64 if setup.small else ROWS
    yield _copies(setup, rows)
    yield _gathered(setup, rows)


def _copies(setup: Setup, rows: int) -> Finding:
    """Measure GB/s, counting the bytes of the source tensor."""
    device = setup.device
    figures = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        source = torch.randn(rows, WIDTH).to(dtype)
        there = source.to(device)
        ways: dict[str, Callable[[], object]] = {
            "to_device_pageable": functools.partial(source.to, device),
            "from_device_pageable": functools.partial(there.to, "cpu"),
            "message": functools.partial(_message, there),
        }
        if device == "cuda":
            pinned, back = source.pin_memory(), torch.empty_like(source).pin_memory()
            ways["to_device_pinned"] = functools.partial(pinned.to, device, non_blocking=True)
            ways["from_device_pinned"] = functools.partial(back.copy_, there, non_blocking=True)
        for way, work in ways.items():
            if setup.in_time:
                figures[f"{way}_{name}_gb_s"] = _speed(source.nbytes, times(work, device, setup.runs(10)).steady)
    there = torch.randn(rows, WIDTH, device=device)
    figures["float32_then_from_device_ms"] = times(lambda: there.bfloat16().float().cpu(), device, 3).steady
    figures["bfloat16_from_device_ms"] = times(lambda: there.bfloat16().cpu(), device, 3).steady
    return Finding("copies: GB/s", bool(figures), figures)


def _message(rows: torch.Tensor) -> object:
    return Tensor.of(rows).buffer()


def _gathered(setup: Setup, rows: int) -> Finding:
    """Gather the rows of one prefill chunk. The prompt has only media rows, and all of them also have DeepStack rows.
    Compare the results on the device and on the CPU.
    """
    torch.manual_seed(0)
    index = torch.arange(rows)
    prompt = PromptRows(
        ids=torch.zeros(rows, dtype=torch.int64),
        positions=torch.rand(3, rows),
        delta=0.5,
        media_rows=index,
        media_embeds=torch.randn(rows, WIDTH),
        visual_rows=index,
        deepstack=torch.randn(LAYERS, rows, WIDTH),
    )
    stretches = [Stretch(prompt, 1, 3, rows - 3)]
    device = torch.device(setup.device)
    here, there = (gather(stretches, place, torch.bfloat16) for place in (torch.device("cpu"), device))
    names = ("positions", "slots", "deltas", "media_index", "media_embeds", "visual_index", "deepstack")
    wrong = [name for name in names if not torch.equal(getattr(here, name), getattr(there, name).cpu())]
    taken = times(lambda: gather(stretches, device, torch.bfloat16), setup.device, setup.runs(5)).steady
    moved = (1 + LAYERS) * (rows - 6) * WIDTH * 4
    return Finding("copies: gather", not wrong, {"wrong": wrong, "ms": taken, "gb_s": _speed(moved, taken)})


def _speed(size: int, milliseconds: float) -> float:
    return round(size / max(milliseconds, 1e-6) / 1e6, 2)
