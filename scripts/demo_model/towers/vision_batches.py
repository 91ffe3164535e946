"""Runs the vision tower on batches of equal frames: the reference's own modules, without packing."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from demo_model.towers.attention import attend

PATCH, MERGE = 16, 2
CELL = PATCH * MERGE
"""Side of what one visual token sees, in pixels."""


def see(visual: Any, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the vision tower makes of pictures or of steps of a clip.

    Args:
        visual: `Qwen3OmniMoeVisionEncoder`.
        frames: uint8 [batch, 2, height, width, 3], the sides multiples of `CELL`; a picture is twice the same frame.

    Returns:
        float [batch, cells, out_hidden_size] and the DeepStack maps of the same shape; cells row by row.
    """
    batch, _, height, width, _ = frames.shape
    grid = height // PATCH, width // PATCH
    position_ids, indices, weights = _grid(grid, visual.num_grid_per_side)
    projection = visual.patch_embed.proj
    hidden = F.linear(patches(frames), projection.weight.flatten(1), projection.bias).float()
    hidden = hidden + (visual.pos_embed(indices) * weights[:, :, None]).sum(1)
    cos, sin = visual.rotary_pos_emb(hidden, position_ids)
    deep = []
    for number, block in enumerate(visual.blocks):
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if number in visual.deepstack_visual_indexes:
            merger = visual.merger_list[visual.deepstack_visual_indexes.index(number)]
            deep.append(merger(hidden).view(batch, -1, visual.config.out_hidden_size))
    return visual.merger(hidden).view(batch, -1, visual.config.out_hidden_size), deep


def patches(frames: Tensor) -> Tensor:
    """float32 [batch, patches, 3 * 2 * 16 * 16] in the processor's order: four patches of a cell after each other."""
    batch, _, height, width, _ = frames.shape
    rows, columns = height // CELL, width // CELL
    split = frames.view(batch, 2, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    ordered = split.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(batch, rows * columns * MERGE**2, -1)
    return ordered.float() / 127.5 - 1


def _attend(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Full attention among the patches of each frame."""
    batch, patches, _ = hidden.shape
    query, key, value = attention.qkv(hidden).view(batch, patches, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    mixed = attend(_rotated(query, cos, sin), _rotated(key, cos, sin), value)
    return attention.proj(mixed.transpose(1, 2).reshape(batch, patches, -1))


def _rotated(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = rows.chunk(2, dim=-1)
    return (rows * cos + torch.cat([-second, first], dim=-1) * sin).to(rows.dtype)


@functools.cache
def _grid(grid: tuple[int, int], side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one frame's patches: positions, and how the learned position grid is resampled to them."""
    thw = torch.tensor([[1, *grid]])
    indices, weights = get_vision_interpolation_indices_and_weights(
        thw, num_grid_per_side=side, mode="bilinear", align_corners=True, spatial_merge_size=MERGE, kwargs={}
    )
    return get_vision_position_ids(thw, MERGE, kwargs={}), indices, weights
