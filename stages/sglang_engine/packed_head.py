"""Multiplies states by a large vocabulary's matrix, which is packed for oneDNN on a CPU.

With the released vocabulary, this product takes most of a small model's decode step. torch gives products of float32 to
MKL. For few rows, oneDNN with a packed matrix is two to four times faster, at every width of the states.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from torch import nn

# A product with fewer weights is done before oneDNN has looked up its kernel.
LEAST_WEIGHTS = 1 << 20

# Number of rows for which oneDNN chooses the packed form. It suits any number of rows; the form for one row does not.
_ROWS = 32


class OmniLogits(LogitsProcessor):
    """SGLang's computation of logits, with a packed matrix where there is one."""

    _packed: torch.Tensor | None = None

    def pack(self, head: nn.Module) -> None:
        """Replace the weight of a head that is on the CPU by its packed form, if it is large enough."""
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
