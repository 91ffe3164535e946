"""Missing tensors are reported under the names that they have in checkpoints."""

from __future__ import annotations

import pytest

from stages.sglang_engine.completeness import missing_tensors, stray_tensors

LAYER = "model.layers.1."
PARAMETERS = [
    "model.embed_tokens.weight",
    LAYER + "self_attn.qkv_proj.weight",
    LAYER + "self_attn.o_proj.weight",
    LAYER + "mlp.gate.weight",
    LAYER + "mlp.experts.w13_weight",
    LAYER + "mlp.experts.w13_weight_scale_inv",
    LAYER + "mlp.experts.w2_weight",
    LAYER + "mlp.shared_expert.gate_up_proj.weight",
    "lm_head.weight",
]
TENSORS = [
    "model.embed_tokens.weight",
    *[f"{LAYER}self_attn.{name}_proj.weight" for name in "qkvo"],
    LAYER + "mlp.gate.weight",
    *[f"{LAYER}mlp.experts.{expert}.{name}_proj.weight" for expert in range(2) for name in ("gate", "up", "down")],
    *[f"{LAYER}mlp.shared_expert.{name}_proj.weight" for name in ("gate", "up")],
    "lm_head.weight",
]


def test_nothing_is_missing_of_a_whole_checkpoint() -> None:
    assert missing_tensors(PARAMETERS, {*TENSORS, "talker.something.else"}, experts=2) == []


@pytest.mark.parametrize("lost", TENSORS)
def test_each_tensor_is_missed(lost: str) -> None:
    assert missing_tensors(PARAMETERS, set(TENSORS) - {lost}, experts=2) == [lost]


PACKED = {
    "qkv_proj.qweight": [f"self_attn.{name}_proj.qweight" for name in "qkv"],
    "qkv_proj.qzeros": [f"self_attn.{name}_proj.qzeros" for name in "qkv"],
    "qkv_proj.scales": [f"self_attn.{name}_proj.scales" for name in "qkv"],
    "experts.w13_weight_packed": [
        f"mlp.experts.{one}.{name}_proj.weight_packed" for one in (0, 1) for name in ("gate", "up")
    ],
    "experts.w2_weight_zero_point": [f"mlp.experts.{one}.down_proj.weight_zero_point" for one in (0, 1)],
    "experts.w2_g_idx_sort_indices": [],
    "experts.w2_weight_shape": [],
}


@pytest.mark.parametrize("parameter", PACKED)
def test_each_packed_tensor_is_missed_and_has_a_place(parameter: str) -> None:
    parent = "mlp." if parameter.startswith("experts") else "self_attn."
    names, tensors = [LAYER + parent + parameter], [LAYER + name for name in PACKED[parameter]]
    assert missing_tensors(names, set(), experts=2) == tensors
    assert stray_tensors(names, tensors, experts=2) == []
    assert stray_tensors([], tensors, experts=2) == tensors


def test_scales_of_quantised_layers_are_expected() -> None:
    parameters = [*PARAMETERS, LAYER + "self_attn.qkv_proj.weight_scale_inv", LAYER + "mlp.experts.w2_weight_scale_inv"]
    scales = [
        *[f"{LAYER}self_attn.{name}_proj.weight_scale_inv" for name in "qkv"],
        *[f"{LAYER}mlp.experts.1.{name}_proj.weight_scale_inv" for name in ("gate", "up", "down")],
    ]
    assert stray_tensors(parameters, [*TENSORS, *scales], experts=2) == []


@pytest.mark.parametrize("name", ["self_attn.o_proj", "mlp.shared_expert.up_proj", "mlp.experts.0.down_proj"])
def test_scale_of_a_layer_that_is_not_quantised_is_found(name: str) -> None:
    stray = f"{LAYER}{name}.weight_scale_inv"
    assert stray_tensors(PARAMETERS, [*TENSORS, stray], experts=2) == [stray]
