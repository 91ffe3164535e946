"""Multiplies states by the output matrix of a large vocabulary on a CPU. The matrix is packed for oneDNN.

With the released vocabulary, this product takes most of the time of a small model's decode step. torch computes float32
products with MKL. For few rows, oneDNN with a packed matrix is two to four times faster, at every width of the states.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from torch import nn

# Minimum number of weights. A smaller product takes less time than oneDNN's search for its kernel.
LEAST_WEIGHTS = 1 << 20

# oneDNN packs the matrix for products with this number of rows. The packed form works for any number of rows. In
# contrast, the form that oneDNN makes for a single row works only for a single row.
_ROWS = 32


class OmniLogits(LogitsProcessor):
    """SGLang's computation of logits. It uses the packed matrix if `pack` has made one."""

    _packed: torch.Tensor | None = None

    def pack(self, head: nn.Module) -> None:
        """Pack the weight of `head`, which is on the CPU, and free the unpacked weight. Do nothing if the weight is
        small or is not float32, or if torch has no oneDNN.
        """
        weight: Any = head.weight
        if weight.dtype != torch.float32 or weight.numel() < LEAST_WEIGHTS or not torch.backends.mkldnn.is_available():
            return
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
        head.weight = nn.Parameter(weight.new_empty(0, weight.shape[1]), requires_grad=False)  # frees the memory

    def all_logits(self, states: torch.Tensor, head: nn.Module) -> torch.Tensor:
        """Logits [rows, vocabulary] for states [rows, hidden], in a model that is not divided among ranks."""
        return self._compute_lm_head(states, head)[:, : self.config.vocab_size]

    def _compute_lm_head(self, hidden_states: torch.Tensor, lm_head: Any, *rest: Any, **more: Any) -> torch.Tensor:
        if self._packed is None:
            logits: torch.Tensor = super()._compute_lm_head(hidden_states, lm_head, *rest, **more)
            return logits
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(hidden_states, self._packed, None, "none", [], "")
        return product
