"""Computes the decoder layers of thinker and talker on a CPU in machine code, in place of SGLang's modules.

SGLang still does everything else: it loads the weights, forms the batches, and owns the KV cache and its tables. The
compiled layers read the same weights and the same cache as SGLang's modules. So one batch may be computed by the
compiled layers, and the next by SGLang's modules.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.layers.moe.utils import RoutingMethodType
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import Tensor

from stages.compiled import FloatArray, compiled
from stages.decoder_kernels import (
    IntArray,
    add_experts,
    attend,
    gate,
    normalise,
    normalise_and_rotate,
    project,
    route,
    sigmoid,
)

# Maximum work of attention in one batch, as the number of pairs of a row and a token to which the row attends. For more
# pairs, torch's attention is faster, because it computes many rows of one request together.
MOST_PAIRS = 1 << 17


class AttentionWeights(NamedTuple):
    """Weights of a layer's attention.

    Attributes:
        norm: [hidden], the weights of the norm before the attention.
        qkv: [(heads + 2 · KV heads) · head_dim, hidden].
        query_norm, key_norm: [head_dim].
        out: [hidden, heads · head_dim].
    """

    norm: FloatArray
    qkv: FloatArray
    query_norm: FloatArray
    key_norm: FloatArray
    out: FloatArray


class ExpertWeights(NamedTuple):
    """Weights of a layer's experts.

    Attributes:
        norm: [hidden], the weights of the norm before the experts.
        router: [experts, hidden].
        gate_up: [experts, 2 · width, hidden].
        down: [experts, hidden, width].
    """

    norm: FloatArray
    router: FloatArray
    gate_up: FloatArray
    down: FloatArray


class SharedWeights(NamedTuple):
    """Weights of the shared expert, which every row passes through. All arrays are empty if the layer has no shared
    expert.

    Attributes:
        gate: [1, hidden], the weights from which the factor of the expert's result is computed.
        gate_up: [2 · width, hidden].
        down: [hidden, width].
    """

    gate: FloatArray
    gate_up: FloatArray
    down: FloatArray


@compiled
def _attention(
    x: FloatArray,
    weights: AttentionWeights,
    epsilon: float,
    cos: FloatArray,
    sin: FloatArray,
    keys: FloatArray,
    values: FloatArray,
    new_places: IntArray,
    table: NDArray[np.int32],
    slots: IntArray,
    lengths: IntArray,
) -> None:
    """Add a layer's attention to x [rows, hidden], in place. `_decoder_layer` describes the arguments."""
    norm, qkv_weight, query_norm, key_norm, out_weight = weights
    rows, hidden = x.shape
    kv_heads, width = keys.shape[1], keys.shape[2]
    heads = qkv_weight.shape[0] // width - 2 * kv_heads
    normed = np.empty((rows, hidden), np.float32)
    normalise(x, norm, epsilon, normed)
    flat = np.empty((rows, qkv_weight.shape[0]), np.float32)
    project(normed, qkv_weight, flat)
    qkv = flat.reshape(rows, heads + 2 * kv_heads, width)
    longest = 0
    # The keys and values of all rows are written first, because a row of a prompt attends to rows before it.
    for row in range(rows):
        longest = max(longest, lengths[row])
        for head in range(heads + kv_heads):
            own_norm = query_norm if head < heads else key_norm
            normalise_and_rotate(qkv[row, head], own_norm, epsilon, cos[row], sin[row])
        keys[new_places[row]] = qkv[row, heads : heads + kv_heads]
        values[new_places[row]] = qkv[row, heads + kv_heads :]
    attended = np.empty((rows, heads * width), np.float32)
    scores = np.empty(longest, np.float32)
    scale = width**-0.5
    for row in range(rows):
        places = table[slots[row], : lengths[row]]
        attend(qkv[row, :heads], keys, values, places, scale, scores, attended[row].reshape(heads, width))
    project(attended, out_weight, normed)
    x += normed


@compiled
def _decoder_layer(
    x: FloatArray,
    attention: AttentionWeights,
    experts: ExpertWeights,
    shared: SharedWeights,
    epsilon: float,
    per_row: int,
    renormalise: bool,
    cos: FloatArray,
    sin: FloatArray,
    keys: FloatArray,
    values: FloatArray,
    new_places: IntArray,
    table: NDArray[np.int32],
    slots: IntArray,
    lengths: IntArray,
) -> None:
    """One decoder layer, in place.

    Args:
        x: [rows, hidden].
        attention, experts, shared: `AttentionWeights`, `ExpertWeights`, `SharedWeights`.
        epsilon: The epsilon of all norms.
        per_row: Number of experts for each row.
        renormalise: Whether the weights of a row's experts add up to 1.
        cos, sin: [rows, head_dim], the rotary factors.
        keys, values: The layer's KV cache, [cache slots, KV heads, head_dim].
        new_places: int64 [rows], the cache slot for each row's own key and value.
        table: int32 [KV-pool slots, tokens]. SGLang assigns a KV-pool slot to each running request. The row of the
            table for this slot has the cache slots of the request's tokens.
        slots: int64 [rows], the KV-pool slot of each row's request.
        lengths: int64 [rows], the number of tokens of the request up to and including this row.
    """
    _attention(x, attention, epsilon, cos, sin, keys, values, new_places, table, slots, lengths)
    norm, router, gate_up, down = experts
    rows, hidden = x.shape
    normed = np.empty((rows, hidden), np.float32)
    normalise(x, norm, epsilon, normed)
    logits = np.empty((rows, router.shape[0]), np.float32)
    project(normed, router, logits)
    chosen = np.empty((rows, per_row), np.int64)
    weights = np.empty((rows, per_row), np.float32)
    route(logits, chosen, weights, renormalise)
    add_experts(normed, chosen, weights, gate_up, down, x)
    shared_gate, shared_gate_up, shared_down = shared
    if shared_gate.shape[0]:
        inner = np.empty((rows, shared_gate_up.shape[0]), np.float32)
        gated = np.empty((rows, shared_down.shape[1]), np.float32)
        outer = np.empty((rows, hidden), np.float32)
        share = np.empty((rows, 1), np.float32)
        project(normed, shared_gate, share)
        project(normed, shared_gate_up, inner)
        gate(inner, gated)
        project(gated, shared_down, outer)
        for row in range(rows):
            target, source, factor = x[row], outer[row], sigmoid(share[row, 0])
            for i in range(hidden):
                target[i] += factor * source[i]


class BatchRows(NamedTuple):
    """Where the keys and values for the rows of a batch are in the KV cache. All arrays are int64 [rows];
    `_decoder_layer` describes them.
    """

    new_places: IntArray
    slots: IntArray
    lengths: IntArray

    @classmethod
    def of(cls, batch: ForwardBatch) -> BatchRows:
        """The rows of a prefill batch or a decode batch."""
        slots, lengths = batch.req_pool_indices, batch.seq_lens
        if batch.forward_mode.is_extend():
            counts = batch.extend_seq_lens.long()
            ends = counts.cumsum(0)
            index = torch.arange(int(ends[-1])) - (ends - counts).repeat_interleave(counts)
            lengths = batch.extend_prefix_lens.long().repeat_interleave(counts) + index + 1
            slots = slots.repeat_interleave(counts)
        return cls(batch.out_cache_loc.long().numpy(), slots.long().numpy(), lengths.long().numpy())


class CompiledLayers:
    """The decoder layers of one model.

    Args:
        model: An `OmniDecoder` for which `suits` is true.
        cache: The model's KV cache.
        table: int32 [KV-pool slots, tokens], SGLang's table. It has the cache slots of the tokens of each request.
    """

    def __init__(self, model: Any, cache: Any, table: Tensor) -> None:
        decoder = model.model
        self._table = table.numpy()
        self._norm = _array(decoder.norm.weight)
        self._epsilon = float(decoder.norm.variance_epsilon)
        self._layers = [
            (*_weights(layer), self._epsilon, layer.mlp.topk.topk_config.top_k, layer.mlp.topk.topk_config.renormalize)
            for layer in decoder.layers
        ]
        self._caches = [(key.numpy(), value.numpy()) for key, value in zip(cache.k_buffer, cache.v_buffer, strict=True)]

    @staticmethod
    def suits(model: Any, cache: Any) -> bool:
        """Whether the compiled code supports all layers: their kind, float32, on a CPU, and not divided among ranks."""
        layers = model.model.layers
        return (
            cache.store_dtype == torch.float32
            and torch.get_num_threads() == 1
            and all(_suits(layer, model.model.norm.variance_epsilon) for layer in layers)
        )

    def can_run(self, rows: BatchRows) -> bool:
        """Whether the attention of a batch is so small that computing it row by row is faster."""
        return int(rows.lengths.sum()) <= MOST_PAIRS

    def run(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        rows: BatchRows,
        *,
        deepstack: Tensor | None = None,
        tap: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The states after the final norm, and the states that enter layer `tap`.

        Args:
            x: Contiguous float32 [rows, hidden], the layers' input, which is overwritten.
            angles: Cosines and sines from `InterleavedAngles`.
            deepstack: [rows, layers · hidden], the values to add after each of the first layers.
        """
        cos, sin = (part[:, 0].contiguous().numpy() for part in angles)
        states = x.numpy()
        width = x.shape[1]
        tapped = None
        for index, (layer, cache) in enumerate(zip(self._layers, self._caches, strict=True)):
            _decoder_layer(states, *layer, cos, sin, *cache, rows.new_places, self._table, rows.slots, rows.lengths)
            if deepstack is not None and (index + 1) * width <= deepstack.shape[1]:
                x += deepstack[:, index * width : (index + 1) * width]
            if index + 1 == tap:
                tapped = x.clone()
        result = torch.empty_like(x)
        normalise(states, self._norm, self._epsilon, result.numpy())
        return result, tapped


def _suits(layer: Any, epsilon: float) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    experts = getattr(mlp, "experts", None)
    if experts is None or not hasattr(experts, "w13_weight") or hasattr(experts, "w13_weight_bias"):
        return False
    weights = attention.qkv_proj.weight, attention.o_proj.weight, experts.w13_weight, experts.w2_weight
    config, runner = mlp.topk.topk_config, experts.moe_runner_config
    return (
        all(type(weight.data) is Tensor and weight.dtype == torch.float32 for weight in weights)
        and all(weight.device.type == "cpu" and weight.data.is_contiguous() for weight in weights)
        and attention.qkv_proj.bias is None
        and attention.attn.sliding_window_size in (None, -1)
        and {layer.input_layernorm.variance_epsilon, attention.q_norm.variance_epsilon} == {epsilon}
        and config.correction_bias is None
        and not config.use_grouped_topk
        and mlp.experts.routing_method_type == RoutingMethodType.Renormalize
        and runner.activation == "silu"
        and not runner.apply_router_weight_on_input
    )


def _weights(layer: Any) -> tuple[AttentionWeights, ExpertWeights, SharedWeights]:
    attention, mlp = layer.self_attn, layer.mlp
    shared = getattr(mlp, "shared_expert", None)
    none = np.empty((0, 0), np.float32)
    return (
        AttentionWeights(
            _array(layer.input_layernorm.weight),
            _array(attention.qkv_proj.weight),
            _array(attention.q_norm.weight),
            _array(attention.k_norm.weight),
            _array(attention.o_proj.weight),
        ),
        ExpertWeights(
            _array(layer.post_attention_layernorm.weight),
            _array(mlp.gate.weight),
            _array(mlp.experts.w13_weight),
            _array(mlp.experts.w2_weight),
        ),
        SharedWeights(none, none, none)
        if shared is None
        else SharedWeights(
            _array(mlp.shared_expert_gate.weight),
            _array(shared.gate_up_proj.weight),
            _array(shared.down_proj.weight),
        ),
    )


def _array(weight: Tensor) -> FloatArray:
    array: FloatArray = weight.detach().numpy()
    return array
