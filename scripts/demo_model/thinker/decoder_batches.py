"""Runs the thinker's decoder on padded batches with the reference's modules. All experts are computed at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from demo_model.thinker.attention_targets import EVENLY, HEADS, Looks, astray
from demo_model.towers.attention import attend


def think(
    model: Any, rows: Tensor, positions: Tensor, deep: Sequence[Tensor] = (), wanted: Sequence[Looks] = ()
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Run the decoder.

    Args:
        model: `Qwen3OmniMoeThinkerTextModel`.
        rows: float32 [batch, length, hidden]. Padding at the end does no harm, because attention is causal.
        positions: float32 [3, batch, length].
        deep: For each of the first layers, the rows to add after that layer. They have the shape of `rows`, and are
            zero where `rows` has no visual row.
        wanted: The targets of `attention_targets.HEADS`.

    Returns:
        Four values. The first value is the last states, float32 [batch, length, hidden]. The second value measures how
        unevenly the experts are used. It is 1 if all experts are used equally. The third value is the distance of the
        heads' attention from their targets. It is 0 if all targets are met. The fourth value is the states after each
        layer.
    """
    cos, sin = model.rotary_emb(rows, positions)
    cos, sin = cos[:, None], sin[:, None]
    hidden, unevenness, elsewhere = rows, rows.new_zeros(()), rows.new_zeros(())
    between = []
    for number, layer in enumerate(model.layers):
        mine = {index: looks for index, looks in enumerate(wanted) if HEADS[index][0] == number}
        mixed, misled = _attend(layer.self_attn, layer.input_layernorm(hidden), cos, sin, mine)
        hidden, elsewhere = hidden + mixed, elsewhere + misled
        mixed, uneven = _mix(layer.mlp, layer.post_attention_layernorm(hidden))
        hidden, unevenness = hidden + mixed, unevenness + uneven / len(model.layers)
        if number < len(deep):
            hidden = hidden + deep[number]
        between.append(hidden)
    return model.norm(hidden), unevenness, elsewhere, between


def _attend(
    attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor, wanted: Mapping[int, Looks]
) -> tuple[Tensor, Tensor]:
    batch, length, _ = hidden.shape
    query, key, value = (
        part(hidden).view(batch, length, -1, attention.head_dim).transpose(1, 2)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = (_rotated(norm(part), cos, sin) for norm, part in ((attention.q_norm, query), (attention.k_norm, key)))
    groups = attention.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    mixed = attend(query, key, value, earlier)
    elsewhere = hidden.new_zeros(())
    for index, looks in wanted.items():
        if len(looks.origins):
            head = HEADS[index][1]
            elsewhere = elsewhere + astray(query[:, head], key[:, head], looks, index >= EVENLY)
    return attention.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1)), elsewhere


def _rotated(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = rows.chunk(2, dim=-1)
    return rows * cos + torch.cat([-second, first], dim=-1) * sin


def _mix(block: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of the outputs of the chosen experts, and a measure of how unevenly the experts are used.

    All experts are computed. An expert that is not chosen has the weight zero.
    """
    gate, experts = block.gate, block.experts
    shares = F.linear(hidden.float(), gate.weight).softmax(-1)
    chosen = torch.zeros_like(shares).scatter(-1, shares.topk(gate.top_k, dim=-1).indices, 1.0)
    weights = shares * chosen
    weights = weights / weights.sum(-1, keepdim=True)
    number, doubled, width = experts.gate_up_proj.shape
    both = F.linear(hidden, experts.gate_up_proj.reshape(-1, width)).unflatten(-1, (number, doubled))
    first, second = both.chunk(2, dim=-1)
    inner = F.silu(first) * second * weights[..., None].to(both.dtype)
    mixed = F.linear(inner.flatten(-2), experts.down_proj.permute(1, 0, 2).reshape(width, -1))
    used, wanted = chosen.flatten(0, -2).mean(0), shares.flatten(0, -2).mean(0)
    return mixed, number * (used.detach() * wanted).sum() / gate.top_k
