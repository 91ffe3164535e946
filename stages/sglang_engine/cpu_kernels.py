"""Provides faster torch code for the three operations that need most of a decode step's time on a CPU. This code
replaces SGLang's code for these operations.

SGLang's torch-native code is general and slow: attention loops over requests, the expert layer loops over experts, and
a norm consists of eight operations. In a small model, most of the time is spent in Python. The code in this module
computes the same results in a few calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.kernels.fused_op import BaseFusedOp
from sglang.srt.layers.attention.attention_registry import register_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

# When a batch decodes, its requests are padded to the longest sequence, if one of two conditions is true: the padding
# at most doubles the work, or the padded batch has at most `FREE_PLACES` cache slots.
MOST_PADDING = 2.0
FREE_PLACES = 4096

# The requests of a batch are divided into parts. The keys and values of one part are copied and used before the next
# part is copied, so that the copies stay in a core's cache. The copied keys of a part have at most this number of
# bytes. The copied values of a part have the same limit.
ATTENTION_BYTES = 1 << 18

# `few_experts` computes the experts of a single row, and copies the matrices of these experts. This function is used if
# the experts' first matrices together have at most this number of bytes. For larger matrices, `grouped_experts` is
# faster. `grouped_experts` visits all experts, but the visits take less time than the copy.
LARGEST_COPY = 1 << 20


@torch.jit.script
def padded_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    most_bytes: int,
) -> torch.Tensor:
    """For each request, the attention of some query tokens to all tokens of the request.

    The function is a TorchScript function. So a recording (see `decode_trace`) contains the loop itself. Otherwise, it
    would contain only the iterations for the recorded batch.

    Args:
        q: [requests, KV heads, query tokens, head_dim]; the result has the same shape.
        keys, values: The KV cache, [cache slots, KV heads, head_dim].
        places, mask: As in `PaddedDecodeAttention`.
        most_bytes: Maximum number of bytes of keys to gather at once. The keys of one request are always gathered at
            once.
    """
    requests, longest = places.size(0), places.size(1)
    kv_heads, width = keys.size(1), keys.size(2)
    most = max(1, most_bytes // (longest * kv_heads * width * keys.element_size()))
    # The rows are copied with torch's embedding function, which copies whole rows and is five times faster than
    # indexing.
    key_rows, value_rows = keys.flatten(1), values.flatten(1)
    results: list[torch.Tensor] = []
    for first in range(0, requests, most):
        count = min(most, requests - first)
        own = places.narrow(0, first, count)
        own_keys = torch.embedding(key_rows, own).view(count, longest, kv_heads, width).transpose(1, 2)
        own_values = torch.embedding(value_rows, own).view(count, longest, kv_heads, width).transpose(1, 2)
        results.append(
            torch.nn.functional.scaled_dot_product_attention(
                q.narrow(0, first, count), own_keys, own_values, attn_mask=mask.narrow(0, first, count), scale=scale
            )
        )
    return results[0] if len(results) == 1 else torch.cat(results)


class PaddedDecodeAttention(TorchNativeAttnBackend):
    """Torch-native attention that decodes all requests of a batch in one call.

    Attributes:
        places: int64 [requests, longest], the cache slots of the requests' tokens; None if the batch is not padded.
        mask: [requests, 1, 1, longest], 0 for tokens and -inf for padding.
    """

    places: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    _laid_out = False

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        super().init_forward_metadata(forward_batch)
        self._laid_out = False

    def lay_out(self, forward_batch: ForwardBatch) -> None:
        """Set `places` and `mask` for a decode batch. Further calls for the same batch do nothing. The tensors are made
        only when they are needed, because the compiled layers never need them.
        """
        if self._laid_out:
            return
        self._laid_out = True
        self.places = self.mask = None
        cache = self.token_to_kv_pool
        # this code does not support a quantised cache
        if cache.store_dtype != cache.dtype:
            return
        lengths = forward_batch.seq_lens
        longest = int(lengths.max())
        if longest * len(lengths) > max(FREE_PLACES, MOST_PADDING * int(lengths.sum())):
            return
        self.places = self.req_to_token_pool.req_to_token[forward_batch.req_pool_indices, :longest].long()
        padding = torch.arange(longest) >= lengths[:, None]
        self.mask = torch.zeros(padding.shape, dtype=cache.dtype).masked_fill_(padding, -torch.inf)[:, None, None]

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """Attention of one query token for each request: q and the result [requests, heads · head_dim]."""
        self.lay_out(forward_batch)
        windowed = layer.sliding_window_size is not None and layer.sliding_window_size > -1
        if self.places is None or windowed or layer.is_cross_attention or not save_kv_cache:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        cache = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
        kv_heads, width = layer.tp_k_head_num, layer.head_dim
        for buffer, new in zip(cache, (k, v), strict=True):
            buffer.index_copy_(0, forward_batch.out_cache_loc, new.view(-1, kv_heads, width))
        # Several query heads share one key head. They are passed as several query tokens of one head, so that the keys
        # need not be repeated.
        grouped = q.view(-1, kv_heads, layer.tp_q_head_num // kv_heads, width)
        result = padded_attention(grouped, cache[0], cache[1], self.places, self.mask, layer.scaling, ATTENTION_BYTES)
        return result.reshape(-1, layer.tp_q_head_num * width)


def rms_norm(
    norm: RMSNorm,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    post_residual_addition: torch.Tensor | None = None,
    quant_linear: Any = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """If there is no residual, returns the RMSNorm of x. If there is a residual, returns the RMSNorm of x + residual,
    and the sum itself. The results equal those of `RMSNorm.forward_native`, with fewer operations and without casts.
    """
    if x.dtype != torch.float32 or norm.weight.dtype != torch.float32 or norm.variance_size_override is not None:
        return norm.forward_native(x, residual, post_residual_addition, quant_linear)
    if residual is None:
        return _normed(norm, x)
    total = x + residual
    if post_residual_addition is not None:
        total = total + post_residual_addition
    return _normed(norm, total), total


def _normed(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    """The RMSNorm of x as x / hypot(|x|, √(width · epsilon)) · √width · weight. On a CPU, torch's own RMSNorm consists
    of seven operations.
    """
    if not hasattr(norm, "scaled_weight"):  # set when the weights have been loaded
        norm.scaled_weight = norm.weight.detach() * math.sqrt(norm.hidden_size)
        norm.floor = torch.tensor(math.sqrt(norm.hidden_size * norm.variance_epsilon))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(norm.floor)
    return x.div(length).mul_(norm.scaled_weight)


@torch.jit.script
def grouped_experts(
    x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """Computes gated SiLU experts with two grouped matrix products. The rows are sorted by expert, and each product
    covers all experts.

    Args:
        x: [rows, hidden].
        weights, experts: [rows, experts per row].
        w13, w2: [experts, 2 · width, hidden] and [experts, hidden, width].
    """
    flat = experts.reshape(-1).long()
    order = flat.argsort()
    ends = torch.bincount(flat, minlength=w13.shape[0]).cumsum(0, dtype=torch.int32)
    token = order // experts.shape[1]
    gate, up = torch._grouped_mm(x.index_select(0, token), w13.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    rows = torch._grouped_mm(torch.nn.functional.silu(gate) * up, w2.transpose(1, 2), offs=ends)
    rows = rows * weights.reshape(-1).index_select(0, order).unsqueeze(1).to(rows.dtype)
    return torch.zeros_like(x).index_add_(0, token, rows)


@torch.jit.script
def few_experts(
    x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """Computes the experts of one row. Their matrices are copied into a batch of matrices. The arguments are those of
    `grouped_experts`.

    `torch._grouped_mm` visits every expert of the layer. If a layer has many small experts and a row uses few of them,
    visiting all experts takes longer than copying the matrices of the used experts.
    """
    used = experts.reshape(-1)
    gate, up = torch.matmul(w13.index_select(0, used), x[0]).chunk(2, dim=-1)
    inner = torch.nn.functional.silu(gate) * up * weights.reshape(-1, 1).to(x.dtype)
    return torch.bmm(w2.index_select(0, used), inner.unsqueeze(2)).sum(0).t()


@torch.jit.script
def _experts_for_recording(
    x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, most: int
) -> torch.Tensor:
    # This is a TorchScript function, so that a recording (see `decode_trace`) contains the condition itself. Otherwise,
    # the recording would contain only the branch for the recorded batch.
    if x.size(0) == 1 and experts.numel() <= most:
        return few_experts(x, weights, experts, w13, w2)
    return grouped_experts(x, weights, experts, w13, w2)


def cpu_experts(
    x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """Computes gated SiLU experts in the way that is faster for the number of rows."""
    most = LARGEST_COPY // (w13[0].numel() * w13.element_size())
    result: torch.Tensor = _experts_for_recording(x, weights, experts, w13, w2, most)
    return result


def routed_experts(
    method: UnquantizedFusedMoEMethod,
    layer: Any,
    dispatch_output: Any,
    compute: Callable[..., torch.Tensor] = cpu_experts,
) -> StandardCombineInput:
    """A layer's routed experts, computed by `compute`, or by SGLang if `compute` does not support their kind."""
    config = method.moe_runner_config
    if config.activation != "silu" or config.apply_router_weight_on_input or hasattr(layer, "w13_weight_bias"):
        return method.forward_cpu(layer, dispatch_output)
    weights, experts, _ = dispatch_output.topk_output
    x = dispatch_output.hidden_states
    return StandardCombineInput(hidden_states=compute(x, weights, experts, layer.w13_weight, layer.w2_weight))


def install(dispatch_key: str, attention: Callable[[ModelRunner], TorchNativeAttnBackend]) -> None:
    """Install the functions of this module for the platform whose `get_dispatch_key_name` returns `dispatch_key`.

    Args:
        attention: Makes the attention backend of a starting engine.
    """
    BaseFusedOp.register_oot_forward(RMSNorm, rms_norm, dispatch_key)
    BaseFusedOp.register_oot_forward(UnquantizedFusedMoEMethod, routed_experts, dispatch_key)
    register_attention_backend("torch_native")(attention)
