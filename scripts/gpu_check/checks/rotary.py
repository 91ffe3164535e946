"""Checks that rotary angles are on the model's device, and that they equal the angles computed on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gpu_check.running.finding import Finding
from gpu_check.running.measure import times
from gpu_check.running.setup import Setup
from stages.sglang_engine.rotary import ApplyAngles, InterleavedAngles

HEAD_DIM, THETA, SECTIONS = 128, 1e6, [24, 20, 20]
HEADS, TOKENS = 32, 4096
FURTHEST = 65536

# Maximum difference between the cosines that two libraries compute for the same float32 angle.
_ANGLES = 1e-5
# Maximum difference between two rotated values in bfloat16, for numbers up to about 4.
_ROTATED = 0.05


def run(setup: Setup) -> Iterator[Finding]:
    # SGLang builds models inside a device context and never moves them. With the device `meta`, a buffer on the wrong
    # device is found on any machine, even without a GPU.
    for device in dict.fromkeys((setup.device, "meta")):
        stray = stray_buffers(device)
        yield Finding(f"rotary: built on {device}", not stray, {"elsewhere": stray})
    yield _equal(setup)


def stray_buffers(device: str) -> dict[str, str]:
    """The buffers of `InterleavedAngles` that are not on `device`, although they were made in its context."""
    with torch.device(device):
        angles = InterleavedAngles(HEAD_DIM, THETA, SECTIONS)
    return {name: str(buffer.device) for name, buffer in angles.named_buffers() if buffer.device.type != device}


def _equal(setup: Setup) -> Finding:
    device, tokens = setup.device, TOKENS // 16 if setup.small else TOKENS
    torch.manual_seed(0)
    positions = torch.rand(3, tokens) * FURTHEST
    query = torch.randn(tokens, HEADS * HEAD_DIM, dtype=torch.bfloat16)
    here, there = (_made(place) for place in ("cpu", device))
    truth = here(positions)
    found = there(positions.to(device))
    off = max(float((ours.cpu() - theirs).abs().max()) for ours, theirs in zip(found, truth, strict=True))
    apply = ApplyAngles(HEAD_DIM)
    rotated = apply(found, query.to(device), query.to(device))[0].cpu().float()
    expected = apply(truth, query.float(), query.float())[0]
    turned = float((rotated - expected).abs().max())
    decode = found[0][:1], found[1][:1]
    row = query[:1].to(device)
    figures: dict[str, Any] = {
        "cosines_off_by": off,
        "rotated_off_by": turned,
        "rotate_one_row_ms": times(lambda: apply(decode, row, row), device, setup.runs(50)).steady,
    }
    return Finding("rotary: equal to the CPU", off < _ANGLES and turned < _ROTATED, figures)


def _made(device: str) -> InterleavedAngles:
    with torch.device(device):
        return InterleavedAngles(HEAD_DIM, THETA, SECTIONS)
