"""Runs the audio tower on batches of short sounds. It uses the reference's own modules, and pads the sounds instead of
packing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from demo_model.towers.attention import attend

CHUNK, ROWS_PER_CHUNK = 100, 13
LONGEST = 800
"""The maximum length of a sound in mel frames. Such a sound fits into one window of the tower's attention."""


def row_count(frames: int) -> int:
    """The number of rows that the tower makes from a sound of `frames` mel frames."""
    return frames // CHUNK * ROWS_PER_CHUNK + (frames % CHUNK + 7) // 8


def listen(tower: Any, mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Run the audio tower on sounds of at least one second and at most `LONGEST` frames.

    Args:
        tower: `Qwen3OmniMoeAudioEncoder`.
        mels: float32 [128, frames] each.

    Returns:
        The rows, float [batch, rows of the longest, output_dim], and the number of rows of each sound, int64 [batch].
    """
    counts = torch.tensor([row_count(mel.shape[1]) for mel in mels])
    chunks, valid = [], []
    for mel in mels:
        for piece in mel.split(CHUNK, dim=1):
            chunks.append(F.pad(piece, (0, CHUNK - piece.shape[1])))
            valid.append(row_count(piece.shape[1]))
    hidden = torch.stack(chunks)[:, None]
    for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
        hidden = F.gelu(convolution(hidden))
    number, channels, bins, steps = hidden.shape
    rows = tower.conv_out(hidden.permute(0, 3, 1, 2).reshape(number, steps, channels * bins)).float()
    rows = rows + tower.positional_embedding.positional_embedding[:steps]
    is_valid = torch.arange(steps) < torch.tensor(valid)[:, None]

    mask = torch.arange(int(counts.max())) < counts[:, None]
    hidden = rows.new_zeros(len(mels), mask.shape[1], rows.shape[-1])
    hidden[mask] = rows[is_valid]
    for layer in tower.layers:
        hidden = hidden + _attend(layer.self_attn, layer.self_attn_layer_norm(hidden), mask)
        hidden = hidden + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(hidden))))
    return tower.proj2(F.gelu(tower.proj1(tower.ln_post(hidden)))), counts


def _attend(attention: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    batch, rows, width = hidden.shape
    query, key, value = (
        part(hidden).view(batch, rows, attention.num_heads, -1).transpose(1, 2)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = attend(query, key, value, mask[:, None, None])
    return attention.out_proj(mixed.transpose(1, 2).reshape(batch, rows, width))
