"""Provides CPU kernels that treat memory as CUDA kernels do: they write to their inputs, and leave garbage in padding
rows.

These kernels are installed in a model that is loaded while `cuda_habits.enabled()` is true.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import SharedReadEnds
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from torch.nn import functional

from stages.sglang_engine.cpu_kernels import grouped_experts, rms_norm, routed_experts

# The slot of the KV pool that SGLang assigns to a batch's padding rows.
PADDING_SLOT = 0


def put_into(model: torch.nn.Module) -> None:
    """Install these kernels in a model's norms and routed experts, in place of the kernels of `cpu_kernels`."""
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module._forward_method = functools.partial(rms_norm_in_place, module)
        method = getattr(module, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method._forward_method = functools.partial(routed_experts_in_place, method)


def rms_norm_in_place(
    norm: RMSNorm,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    post_residual_addition: torch.Tensor | None = None,
    quant_linear: Any = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Computes the same as `cpu_kernels.rms_norm`. If there is a residual, this function writes the results to `x` and
    `residual`, as the CUDA kernel does.
    """
    if residual is None:
        return rms_norm(norm, x)
    if post_residual_addition is not None:
        residual = residual + post_residual_addition
    normed, total = rms_norm(norm, x, residual)
    return x.copy_(normed), residual.copy_(total)


def routed_experts_in_place(
    method: UnquantizedFusedMoEMethod, layer: Any, dispatch_output: Any
) -> StandardCombineInput:
    """Like `cpu_kernels.routed_experts`, but writes the result into the experts' input, as the Triton kernel does."""
    combined = routed_experts(method, layer, dispatch_output, experts_as_one)
    if not method.moe_runner_config.inplace:
        return combined
    return StandardCombineInput(hidden_states=dispatch_output.hidden_states.copy_(combined.hidden_states))


@torch.library.custom_op("omni_pipeline::grouped_experts", mutates_args=())
def experts_as_one(
    x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """`cpu_kernels.grouped_experts` as one operation, like a kernel in a CUDA graph. A graph cannot record the function
    step by step, because one of its steps counts the rows of each expert on the host.
    """
    return grouped_experts(x, weights, experts, w13, w2)


class StaticDecodeAttention(TorchNativeAttnBackend):
    """Decode attention that reads the lengths and the cache slots from SGLang's static buffers, as a CUDA kernel does.

    So the operation can be part of a graph. Its results for padding rows are garbage.
    """

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Do nothing: this backend keeps no state between steps."""

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        return 1

    def shared_read_ends(self, fm: ForwardMode) -> SharedReadEnds:
        return SharedReadEnds.UNKNOWN  # nothing waits for an event, since steps on a CPU do not overlap

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        keys, values = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
        shape = (-1, layer.tp_k_head_num, layer.head_dim)
        return decode_attention(
            q.view(len(q), layer.tp_q_head_num, layer.head_dim),
            k.view(shape),
            v.view(shape),
            keys,
            values,
            self.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            forward_batch.out_cache_loc,
            layer.scaling,
        ).flatten(1)


@torch.library.custom_op("omni_pipeline::decode_attention", mutates_args=("keys", "values"))
def decode_attention(
    q: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    targets: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Store the key and value of one token of each request, and compute the attention of this token to all tokens of
    the request. This is one operation, so that a graph can record it.

    Args:
        q: [requests, query heads, head_dim].
        new_keys, new_values: [requests, KV heads, head_dim], stored in the cache slots `targets`.
        keys, values: The cache, [cache slots, KV heads, head_dim].
        table: int32 [KV-pool slots, tokens], the cache slots of each request's tokens.
        slots, lengths: int64 [requests].

    Returns:
        A tensor with the shape of `q`; padding rows are NaN.
    """
    keys.index_copy_(0, targets, new_keys)
    values.index_copy_(0, targets, new_values)
    batch, heads, width = q.shape
    places = table[slots, : int(lengths.max())].long()
    padding = torch.arange(places.shape[1]) >= lengths[:, None]
    places[padding] = targets[:1]  # any cache slot of the batch, because the padding slot is garbage
    grouped = q.view(batch, keys.shape[1], heads // keys.shape[1], width)
    mask = torch.zeros(padding.shape, dtype=q.dtype).masked_fill_(padding, -torch.inf)[:, None, None]
    result = functional.scaled_dot_product_attention(
        grouped, keys[places].transpose(1, 2), values[places].transpose(1, 2), attn_mask=mask, scale=scale
    )
    result[slots == PADDING_SLOT] = torch.nan
    return result.reshape(q.shape)
