"""Runs the vision tower on batches of frames of one size. It uses the reference's own modules, and needs no packing."""

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
"""The side of the square that one visual token covers, in pixels."""


def see(visual: Any, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run the vision tower on pictures or on steps of a clip.

    Args:
        visual: `Qwen3OmniMoeVisionEncoder`.
        frames: uint8 [batch, 2, height, width, 3], with sides that are multiples of `CELL`. A picture has two equal
            frames.

    Returns:
        float [batch, cells, out_hidden_size], and the DeepStack maps of the same shape. Cells are in row order.
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
    """float32 [batch, patches, 3 * 2 * 16 * 16] in the processor's order, in which the four patches of a cell are
    neighbours.
    """
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
    """The positions of one frame's patches, and the indices and weights with which the learned positions are resampled
    for these patches.
    """
    thw = torch.tensor([[1, *grid]])
    indices, weights = get_vision_interpolation_indices_and_weights(
        thw, num_grid_per_side=side, mode="bilinear", align_corners=True, spatial_merge_size=MERGE, kwargs={}
    )
    return get_vision_position_ids(thw, MERGE, kwargs={}), indices, weights
