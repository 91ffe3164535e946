"""Runs the vocoder's transformer with a sliding window of keys and values for each utterance."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from stages.code2wav.history import Streams


class WindowedLayer(NamedTuple):
    """One decoder layer: its joined weights [out, in], and the reference's norms and scales."""

    input_norm: Any
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Any
    attention_scale: Tensor
    output_norm: Any
    gate_up: Tensor
    down: Any
    mlp_scale: Tensor


class SlidingTransformer:
    """Computes the outputs of new frames. They equal the outputs that the reference computes from the whole utterance
    so far.

    Args:
        model: The reference's `pre_transformer`. This object takes over its weights.
        slots: Number of utterances whose state is kept.
    """

    def __init__(self, model: Any, slots: int) -> None:
        config = model.config
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._norm = model.norm
        self._rotary = model.rotary_emb
        self._layers = [_take_over(layer) for layer in model.layers]
        head_dim = self._layers[0].qkv.shape[0] // (self._heads + 2 * self._kv_heads)
        self._past: int = config.sliding_window - 1  # a frame attends to itself and this many earlier frames
        # Keys (already rotated) and values of the most recent frames. The newest frame is last.
        self._kept = self._layers[0].qkv.new_zeros(len(model.layers), 2, slots, self._kv_heads, self._past, head_dim)

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        """The transformer's output for x [batch, frames, hidden], after the final norm. The output has the same
        shape.
        """
        batch, frames, _ = x.shape
        heads, kv_heads = self._heads, self._kv_heads
        cos, sin = self._rotary(x, streams.done[:, None] + torch.arange(frames, device=x.device))
        half = cos.shape[-1] // 2
        cos, sin = cos[:, None], torch.cat((-sin[:, None, :, :half], sin[:, None, :, half:]), -1)
        mask = self._mask(streams, frames)
        for layer, kept in zip(self._layers, self._kept, strict=True):
            qkv = functional.linear(layer.input_norm(x), layer.qkv, layer.qkv_bias)
            qkv = qkv.view(batch, frames, heads + 2 * kv_heads, -1).transpose(1, 2)
            qk = qkv[:, : heads + kv_heads]
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)
            keys, values = qk[:, heads:], qkv[:, heads + kv_heads :]
            keys, values = self._extend(kept[0], keys, streams), self._extend(kept[1], values, streams)
            attended = functional.scaled_dot_product_attention(
                qk[:, :heads], keys, values, mask, enable_gqa=heads != kv_heads
            )
            attended = layer.out(attended.transpose(1, 2).reshape(batch, frames, -1))
            x = torch.addcmul(x, attended, layer.attention_scale)
            gate, up = functional.linear(layer.output_norm(x), layer.gate_up).chunk(2, -1)
            x = torch.addcmul(x, layer.down(functional.silu(gate) * up), layer.mlp_scale)
        return self._norm(x)

    def _mask(self, streams: Streams, frames: int) -> Tensor:
        """The attention mask, bool [batch, 1, new frames, kept frames + new frames]. Rows are new frames, and
        columns are kept and new frames. A value is true if the row's frame attends to the column's frame. If the
        utterances are fresh, there are no kept frames, and all utterances share one mask.
        """
        past = 0 if streams.fresh else self._past
        own = torch.arange(past, past + frames, device=self._kept.device)[:, None]
        other = torch.arange(past + frames, device=self._kept.device)
        window = (other <= own) & (other >= own - self._past)
        if streams.fresh:
            return window[None, None]
        # the part of the kept window before the utterance's first frame is empty
        known = other >= past - streams.done[:, None]
        return (window & known[:, None])[:, None]

    def _extend(self, kept: Tensor, new: Tensor, streams: Streams) -> Tensor:
        """Put the kept window in front of `new` [batch, kv heads, frames, head_dim], and keep the last frames as the
        next window.
        """
        if not streams.fresh:
            new = torch.cat((streams.read(kept), new), 2)
        last = new[:, :, -self._past :]
        missing = self._past - last.shape[2]
        streams.write(kept, functional.pad(last, (0, 0, missing, 0)) if missing else last)
        return new


def _take_over(layer: Any) -> WindowedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    biases = [projection.bias for projection in projections]
    return WindowedLayer(
        input_norm=layer.input_layernorm,
        qkv=torch.cat([projection.weight for projection in projections]),
        qkv_bias=None if biases[0] is None else torch.cat(biases),
        out=attention.o_proj,
        attention_scale=layer.self_attn_layer_scale.scale,
        output_norm=layer.post_attention_layernorm,
        gate_up=torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)),
        down=mlp.down_proj,
        mlp_scale=layer.mlp_layer_scale.scale,
    )
