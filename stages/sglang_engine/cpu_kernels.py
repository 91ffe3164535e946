"""Faster torch forms of three operations that dominate a decode step on a CPU, put in SGLang's places for them.

SGLang's torch-native paths are written to be right everywhere: attention loops over requests, experts over experts,
and a norm is eight operations. On a small model that is Python time. These do the same sums in a few calls each.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.kernels.fused_op import BaseFusedOp
from sglang.srt.layers.attention.attention_registry import register_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch.nn import functional

# Decode attention is padded to the longest sequence while that at most doubles the work.
MOST_PADDING = 2.0


class PaddedDecodeAttention(TorchNativeAttnBackend):
    """Torch-native attention that decodes all requests of a batch in one call.

    Attributes:
        _places: int64 [requests, longest], KV-cache places of their tokens; None where the padding would not pay.
        _mask: bool [requests, 1, 1, longest], which of them are tokens; None where all are.
    """

    _places: torch.Tensor | None = None
    _mask: torch.Tensor | None = None

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        super().init_forward_metadata(forward_batch)
        self._places = self._mask = None
        if not forward_batch.forward_mode.is_decode():
            return
        lengths = forward_batch.seq_lens
        longest = int(lengths.max())
        if longest * len(lengths) > MOST_PADDING * int(lengths.sum()):
            return
        self._places = self.req_to_token_pool.req_to_token[forward_batch.req_pool_indices, :longest].long()
        if int(lengths.min()) < longest:
            self._mask = (torch.arange(longest) < lengths[:, None])[:, None, None]

    def _run_sdpa_forward_decode(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        *rest: Any,
        **more: Any,
    ) -> torch.Tensor:
        """Attention of one query token for each request: query and output [requests, heads, head_dim]."""
        if self._places is None or more.get("sliding_window_size") is not None or more.get("is_cross_attn"):
            return super()._run_sdpa_forward_decode(query, output, k_cache, v_cache, *rest, **more)
        # Query heads that share a key head stand in the place of query tokens, so that keys need not be repeated.
        requests, heads, width = query.shape
        grouped = query.view(requests, k_cache.shape[1], heads // k_cache.shape[1], width)
        keys, values = (cache[self._places].transpose(1, 2) for cache in (k_cache, v_cache))
        result = functional.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=self._mask, scale=more["scaling"]
        )
        output.copy_(result.reshape(output.shape))
        return output


def rms_norm(
    norm: RMSNorm,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    post_residual_addition: torch.Tensor | None = None,
    quant_linear: Any = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of x, or of x + residual with that sum; as `RMSNorm.forward_native`, fused where nothing is cast."""
    if x.dtype != torch.float32 or norm.weight.dtype != torch.float32 or norm.variance_size_override is not None:
        return norm.forward_native(x, residual, post_residual_addition, quant_linear)
    if residual is None:
        return functional.rms_norm(x, (norm.hidden_size,), norm.weight, norm.variance_epsilon)
    total = x + residual
    if post_residual_addition is not None:
        total = total + post_residual_addition
    return functional.rms_norm(total, (norm.hidden_size,), norm.weight, norm.variance_epsilon), total


def routed_experts(method: UnquantizedFusedMoEMethod, layer: Any, dispatch_output: Any) -> StandardCombineInput:
    """Gated SiLU experts by grouped matrix products: rows sorted by expert, two products for all experts together."""
    config = method.moe_runner_config
    x = dispatch_output.hidden_states
    if config.activation != "silu" or config.apply_router_weight_on_input or hasattr(layer, "w13_weight_bias"):
        return method.forward_cpu(layer, dispatch_output)
    weights, experts, _ = dispatch_output.topk_output
    flat = experts.reshape(-1).long()
    order = flat.argsort()
    ends = torch.bincount(flat, minlength=layer.w13_weight.shape[0]).cumsum(0, dtype=torch.int32)
    token = order // experts.shape[1]
    gate, up = functional.grouped_mm(x[token], layer.w13_weight.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    rows = functional.grouped_mm(functional.silu(gate) * up, layer.w2_weight.transpose(1, 2), offs=ends)
    rows = rows * weights.reshape(-1)[order, None].to(rows.dtype)
    return StandardCombineInput(hidden_states=torch.zeros_like(x).index_add_(0, token, rows))


def install(dispatch_key: str) -> None:
    """Put them in place for a platform with this `get_dispatch_key_name`."""
    BaseFusedOp.register_oot_forward(RMSNorm, rms_norm, dispatch_key)
    BaseFusedOp.register_oot_forward(UnquantizedFusedMoEMethod, routed_experts, dispatch_key)
    register_attention_backend("torch_native")(PaddedDecodeAttention)
