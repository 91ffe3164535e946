"""Computes rotary position embeddings with interleaved M-RoPE sections, for positions that may be fractional.

SGLang looks angles up in a table by integer position. The reference computes the angles from float32 positions, which
are fractional for clips at some frame rates. So this module computes the angles instead of looking them up: once for
each forward pass, for all layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class InterleavedAngles(nn.Module):
    """Angles of the reference's `Qwen3OmniMoeThinkerTextRotaryEmbedding`.

    Args:
        head_dim: Width of an attention head.
        theta: Base of the frequencies.
        sections: Numbers of frequencies for time, height and width. Frequency i belongs to height if i % 3 == 1 and i <
            3·sections[1]. It belongs to width if i % 3 == 2 and i < 3·sections[2]. All other frequencies belong to
            time.
    """

    inverse: torch.Tensor
    axis: torch.Tensor

    def __init__(self, head_dim: int, theta: float, sections: list[int]) -> None:
        super().__init__()
        half = head_dim // 2
        exponent = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").to(torch.float32) / head_dim
        axis = torch.zeros(half, dtype=torch.int64, device="cpu")
        axis[1 : 3 * sections[1] : 3] = 1
        axis[2 : 3 * sections[2] : 3] = 2
        # Compute the frequencies on the CPU, so that they are the same on every device. Then move them to the device on
        # which the model is built, because SGLang does not move them later.
        device = torch.get_default_device()
        self.register_buffer("inverse", (1.0 / (theta**exponent)).to(device), persistent=False)
        self.register_buffer("axis", axis.to(device), persistent=False)

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, each float32 [tokens, 1, head_dim].

        Args:
            positions: float32 [3, tokens], or [tokens] if the three axes agree.
        """
        by_frequency = positions[self.axis].T if positions.dim() == 2 else positions[:, None]
        angles = by_frequency * self.inverse
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        return angles.cos(), angles.sin()


class ApplyAngles(nn.Module):
    """Replaces SGLang's rotary layer; its `positions` argument is the pair from `InterleavedAngles`."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(
        self,
        positions: tuple[torch.Tensor, torch.Tensor],
        query: torch.Tensor,
        key: torch.Tensor,
        fused_set_kv_buffer_arg: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate query [tokens, heads·head_dim] and key [tokens, kv heads·head_dim]."""
        cos, sin = (part.to(query.dtype) for part in positions)
        return self._rotate(query, cos, sin), self._rotate(key, cos, sin)

    def _rotate(self, flat: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        heads = flat.reshape(flat.shape[0], -1, self.head_dim)
        left, right = heads.chunk(2, dim=-1)
        turned = torch.cat((-right, left), dim=-1)
        return (heads * cos + turned * sin).reshape(flat.shape)
