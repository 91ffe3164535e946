"""Thinker and talker of the 30B model, built on ``meta`` as SGLang's loader builds them on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
from fake_gpu import Accelerator

from tests.fake_gpu.conftest import DescribeEngine

# What computes the joined projection, the experts, and who runs those.
METHODS = {
    "BF16": ("UnquantizedLinearMethod", "UnquantizedFusedMoEMethod", "triton"),
    "FP8": ("Fp8LinearMethod", "Fp8MoEMethod", "cutlass"),
    "INT4": ("CompressedTensorsLinearMethod", "CompressedTensorsFusedMoEMethod", "marlin"),
}

# Shapes and types of the experts: [experts, two intermediates, hidden], scales of blocks of 128, eight INT4 in one.
EXPERTS = {
    ("thinker", "BF16"): {"w13_weight": ([128, 1536, 2048], "bfloat16"), "w2_weight": ([128, 2048, 768], "bfloat16")},
    ("talker_ar", "BF16"): {"w13_weight": ([128, 768, 1024], "bfloat16"), "w2_weight": ([128, 1024, 384], "bfloat16")},
    ("thinker", "FP8"): {
        "w13_weight": ([128, 1536, 2048], "float8_e4m3fn"),
        "w2_weight": ([128, 2048, 768], "float8_e4m3fn"),
        "w13_weight_scale_inv": ([128, 12, 16], "float32"),
        "w2_weight_scale_inv": ([128, 16, 6], "float32"),
    },
    ("talker_ar", "FP8"): {
        "w13_weight": ([128, 768, 1024], "float8_e4m3fn"),
        "w2_weight": ([128, 1024, 384], "float8_e4m3fn"),
        "w13_weight_scale_inv": ([128, 6, 8], "float32"),
        "w2_weight_scale_inv": ([128, 8, 3], "float32"),
    },
    ("thinker", "INT4"): {
        "w13_weight_packed": ([128, 256, 1536], "int32"),
        "w2_weight_packed": ([128, 96, 2048], "int32"),
        "w13_weight_scale": ([128, 16, 1536], "bfloat16"),
        "w2_weight_scale": ([128, 6, 2048], "bfloat16"),
    },
    ("talker_ar", "INT4"): {
        "w13_weight_packed": ([128, 128, 768], "int32"),
        "w2_weight_packed": ([128, 48, 1024], "int32"),
        "w13_weight_scale": ([128, 8, 768], "bfloat16"),
        "w2_weight_scale": ([128, 3, 1024], "bfloat16"),
    },
}
PROJECTION = {"thinker": [5120, 2048], "talker_ar": [2560, 1024]}


@pytest.fixture(scope="module", params=EXPERTS, ids="-".join)
def built(request: pytest.FixtureRequest, engines: Accelerator, engine: DescribeEngine) -> tuple[str, str, Any]:
    """Stage, kind of checkpoint, and `faked_starts.engines.Built`."""
    stage, kind = request.param
    return stage, kind, engines.run("faked_starts.engines:build", engine=engine(stage, kind))


def test_all_of_the_model_is_where_it_is_built(built: tuple[str, str, Any]) -> None:
    _, _, model = built
    assert set(model["devices"]) == {"meta"}, {device: names[:5] for device, names in model["devices"].items()}
    assert {"angles.inverse", "angles.axis"} <= set(model["devices"]["meta"])


def test_experts_and_projections_are_computed_as_their_weights_are_stored(built: tuple[str, str, Any]) -> None:
    _, kind, model = built
    assert (model["linear"], model["experts"], model["moe_runner"]) == METHODS[kind]
    assert model["kv_cache_dtype"] == "bfloat16"


def test_weights_have_the_shapes_and_types_of_the_30b_model(built: tuple[str, str, Any]) -> None:
    stage, kind, model = built
    shapes, types = model["shapes"], model["dtypes"]
    experts = {f"mlp.experts.{name}": wanted for name, wanted in EXPERTS[stage, kind].items()}
    assert {name: (shapes[name], types[name]) for name in experts} == experts
    packed = {"INT4": ".weight_packed"}.get(kind, ".weight")
    rows, columns = PROJECTION[stage]
    assert shapes[f"self_attn.qkv_proj{packed}"] == [rows, columns // 8 if kind == "INT4" else columns]
    # What routes and what normalises is never quantised.
    plain = ["mlp.gate.weight", "input_layernorm.weight", "self_attn.q_norm.weight"]
    plain += ["mlp.shared_expert_gate.weight"] if stage == "talker_ar" else []
    assert {types[name] for name in plain} == {"bfloat16"}
