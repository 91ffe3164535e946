"""Provides torch code for operations whose GPU kernels in SGLang do not support float32.

The RMSNorm libraries that SGLang uses are compiled for float16 and bfloat16 only. SGLang's Triton kernel for experts
rounds float32 to float16, in which large values become infinite. The code of this module can be captured in a CUDA
graph: it reads nothing back to the host, and its shapes depend only on the number of tokens.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
from torch import nn
from torch.nn import functional

# Maximum number of bytes of intermediate results at a time. The results are large, because every expert is computed for
# every token.
_CHUNK_BYTES = 256 * 1024**2


def install(model: nn.Module) -> None:
    """Let a model compute in float32 on a GPU."""
    for module in model.modules():
        if isinstance(module, (RMSNorm, SiluAndMul)):
            module._forward_method = module.forward_native
        elif isinstance(module, UnquantizedFusedMoEMethod):
            module._forward_method = types.MethodType(all_experts, module)


def all_experts(method: UnquantizedFusedMoEMethod, layer: Any, dispatch_output: Any) -> StandardCombineInput:
    """Gated SiLU experts. Each expert is computed for all tokens, with weight zero for tokens that are not routed to
    the expert.

    Raises:
        NotImplementedError: The experts have a bias, an activation other than SiLU, or weights on their input.
    """
    config = method.moe_runner_config
    if config.activation != "silu" or config.apply_router_weight_on_input or hasattr(layer, "w13_weight_bias"):
        raise NotImplementedError(
            "float32 on a GPU supports only experts that use SiLU, have no bias, and multiply their output by the "
            "router's weight"
        )
    x = dispatch_output.hidden_states
    weights, experts, _ = dispatch_output.topk_output
    # Padding rows of a captured step have the expert -1.
    kept = weights.masked_fill(experts < 0, 0).to(x.dtype)
    routed = x.new_zeros(len(x), len(layer.w13_weight)).scatter_add_(1, experts.long().clamp(min=0), kept)
    rows = max(1, _CHUNK_BYTES // (layer.w13_weight[..., 0].numel() * x.element_size()))
    parts = [
        _weighted(layer, part, weight)
        # every expert computes the same number of rows
        for part, weight in zip(x.split(rows), routed.split(rows), strict=True)
    ]
    return StandardCombineInput(hidden_states=torch.cat(parts))


def _weighted(layer: Any, x: torch.Tensor, routed: torch.Tensor) -> torch.Tensor:
    """The weighted sum over all experts. `x` and the result are [tokens, hidden], `routed` is [tokens, experts]."""
    experts = len(layer.w13_weight)
    joined = functional.linear(x, layer.w13_weight.flatten(0, 1)).view(len(x), experts, -1)
    gate, up = joined.chunk(2, dim=-1)
    inner = functional.silu(gate) * up * routed[..., None]
    return torch.bmm(inner.transpose(0, 1), layer.w2_weight.transpose(1, 2)).sum(dim=0)
