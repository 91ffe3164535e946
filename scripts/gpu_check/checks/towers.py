"""Checks both encoder towers: time, memory against the plan, the device of `cu_seqlens`, and the patch convolution."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch

from gpu_check.running.finding import Finding
from gpu_check.running.measure import mib, peak_bytes, times
from gpu_check.running.random_parts import RandomModel
from gpu_check.running.setup import Setup
from omni_pipeline.contract.stage_memory import Needs, Situation
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint import memory_needs
from stages.encoders.audio_encoder import AudioEncoder
from stages.encoders.image_encoder import ImageEncoder
from stages.messages import AudioItem, VisionItem
from stages.options import EncoderOptions

PICTURE = (1, 64, 64)  # patches of 16 x 16 pixels: one megapixel
CLIP = (30, 36, 48)  # 60 frames of 576 x 768 pixels: 30 s at two frames a second; a patch covers two frames
SOUND_FRAMES = 3000  # 30 s

# Tolerance above the planned memory, for the allocator's rounding.
_ROUNDING = 1.05
_BFLOAT16 = 0.03


def run(setup: Setup) -> Iterator[Finding]:
    model = RandomModel(setup.directory, setup.device, small=setup.small)
    options = EncoderOptions(cache_bytes=0)
    vision = ImageEncoder(model.context("image_encoder", options))
    for name, grid in (("picture of 1 MP", PICTURE), ("clip of 30 s", CLIP)):
        if setup.small:
            grid = (min(grid[0], 2), 12, 12)
        item = VisionItem(b"1", grid, Tensor.of(torch.randn(grid[0] * grid[1] * grid[2], 1536)))
        yield _encoded(setup, f"towers: {name}", vision, item, model.situation(options), memory_needs.vision)
    yield _patches(setup, vision)
    yield _lengths(setup, vision)
    sound = AudioEncoder(model.context("audio_encoder", options))
    heard = AudioItem(b"2", Tensor.of(torch.randn(128, 200 if setup.small else SOUND_FRAMES)))
    yield _encoded(setup, "towers: sound of 30 s", sound, heard, model.situation(options), memory_needs.audio)


def _encoded(
    setup: Setup, name: str, stage: Any, item: Any, situation: Situation, needs: Callable[[Situation], Needs]
) -> Finding:
    """Encode one item as the stage does, including the copies."""
    results: list[Any] = []

    def work() -> None:
        results.clear()
        while not results:  # a large item is encoded piece by piece
            results.extend(result for _, result in stage._encoded([item], 100))

    rows = stage.row_count(item)
    taken_ms = times(work, setup.device, setup.runs(5))
    taken, planned = peak_bytes(work, setup.device), _planned(situation, needs, rows)
    right = len(results) == 1 and results[0].rows.shape[0] == rows and bool(torch.isfinite(results[0].rows).all())
    figures = {
        "rows": rows, "first_ms": taken_ms.first, "steady_ms": taken_ms.steady,
        "peak_mib": mib(taken), "planned_mib": mib(planned),
    }  # fmt: skip
    return Finding(name, right and taken <= planned * _ROUNDING, figures)


def _planned(situation: Situation, needs: Callable[[Situation], Needs], rows: int) -> int:
    """The number of bytes that the memory plan reserves for encoding `rows` rows at once. The options limit the number
    of rows, because longer items are encoded in pieces.
    """
    limit = situation.options.max_batch_tokens
    if needs is memory_needs.vision:
        # `activations` is the need of the largest picture, or of a full batch if a full batch has more rows.
        whole = needs(situation).activations
        return whole * min(rows, limit) // max(limit, memory_needs.LARGEST_PICTURE_ROWS)
    chosen = msgspec.structs.replace(situation.options, max_batch_tokens=min(rows, limit))
    return needs(msgspec.structs.replace(situation, options=chosen)).activations


@torch.inference_mode()
def _patches(setup: Setup, stage: ImageEncoder) -> Finding:
    """Compare the reference's patch embedding, a three-dimensional convolution, with one matrix product."""
    embed = stage._tower.patch_embed
    weight, bias = embed.proj.weight.flatten(1), embed.proj.bias
    patches = torch.randn(100 if setup.small else 4096, weight.shape[1]).to(setup.device, weight.dtype)
    convolved, product = embed(patches), torch.nn.functional.linear(patches, weight, bias)
    off = float((convolved - product).abs().max() / convolved.abs().max())
    figures = {
        "conv3d_ms": times(lambda: embed(patches), setup.device, setup.runs(5)).steady,
        "linear_ms": times(
            lambda: torch.nn.functional.linear(patches, weight, bias), setup.device, setup.runs(5)
        ).steady,
        "off_by": off,
    }
    return Finding("towers: patch embedding as a product", off < _BFLOAT16, figures)


@torch.inference_mode()
def _lengths(setup: Setup, stage: ImageEncoder) -> Finding:
    """Time the vision tower with `cu_seqlens` on the device and on the CPU, and check that the results are equal. The
    attention reads `cu_seqlens` in every layer.
    """
    frames, side = (2, 12) if setup.small else (8, 40)
    grid = torch.tensor([[frames, side, side]], device=setup.device)
    tower = stage._tower
    patches = torch.randn(frames * side * side, 1536).to(setup.device, tower.dtype)
    borders = torch.arange(0, frames + 1, dtype=torch.int32) * side * side

    def encoded(place: str) -> torch.Tensor:
        rows: torch.Tensor = tower(patches, grid_thw=grid, cu_seqlens=borders.to(place)).pooler_output
        return rows

    outputs = {place: encoded(place) for place in dict.fromkeys((setup.device, "cpu"))}
    same = all(torch.equal(rows, outputs[setup.device]) for rows in outputs.values())
    steady = {
        f"cu_seqlens_on_{place}_ms": times(functools.partial(encoded, place), setup.device, setup.runs(5)).steady
        for place in outputs
    }
    return Finding("towers: borders on device and CPU", same, {**steady, "equal": same})
