"""The thinker and the talker of the 30B model have the expected layers. SGLang's loader builds these models on ``meta``
in the same way as on a GPU.
"""

from __future__ import annotations

import pytest
from fake_gpu import Accelerator
from faked_starts.data import STAGES
from faked_starts.resolution import build

from tests.fake_gpu.conftest import DescribeEngine, Models

# For each kind of checkpoint: SGLang's classes for the joined projection and for the experts, and the backend that runs
# the experts.
METHODS = {
    "BF16": ("UnquantizedLinearMethod", "UnquantizedFusedMoEMethod", "triton"),
    "FP8": ("Fp8LinearMethod", "Fp8MoEMethod", "cutlass"),
    "INT4": ("CompressedTensorsLinearMethod", "CompressedTensorsFusedMoEMethod", "marlin"),
}

# Shapes and types of the experts' tensors. In BF16 and FP8, ``w13`` is [experts, 2 · intermediate, hidden], and ``w2``
# is [experts, hidden, intermediate]. FP8 has a scale for each block of 128×128. INT4 is transposed, with eight numbers
# in each integer.
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


each_model = pytest.mark.parametrize(("stage", "kind"), EXPERTS)


@each_model
def test_all_of_the_model_is_where_it_is_built(stage: str, kind: str, model: Models) -> None:
    devices = model(stage, kind).devices
    assert set(devices) == {"meta"}, {device: names[:5] for device, names in devices.items()}
    assert {"angles.inverse", "angles.axis"} <= set(devices["meta"])


@each_model
def test_experts_and_projections_are_computed_as_their_weights_are_stored(stage: str, kind: str, model: Models) -> None:
    built = model(stage, kind)
    assert (built.linear, built.experts, built.moe_runner) == METHODS[kind]
    assert built.kv_cache_dtype == "bfloat16"


@each_model
def test_weights_have_the_shapes_and_types_of_the_30b_model(stage: str, kind: str, model: Models) -> None:
    shapes, types = model(stage, kind).shapes, model(stage, kind).dtypes
    experts = {f"mlp.experts.{name}": wanted for name, wanted in EXPERTS[stage, kind].items()}
    assert {name: (shapes[name], types[name]) for name in experts} == experts
    packed = {"INT4": ".weight_packed"}.get(kind, ".weight")
    rows, columns = PROJECTION[stage]
    assert shapes[f"self_attn.qkv_proj{packed}"] == [rows, columns // 8 if kind == "INT4" else columns]
    # Routers and norms are never quantised.
    plain = ["mlp.gate.weight", "input_layernorm.weight", "self_attn.q_norm.weight"]
    plain += ["mlp.shared_expert_gate.weight"] if stage == "talker_ar" else []
    assert {types[name] for name in plain} == {"bfloat16"}


@each_model
def test_half_precision_is_computed_by_the_kernels_for_gpus(stage: str, kind: str, model: Models) -> None:
    forms = model(stage, kind).forms
    assert forms["RMSNorm"] == ["forward_cuda"]
    assert {form for found in forms.values() for form in found} == {"forward_cuda"}


@pytest.mark.parametrize("stage", STAGES)
def test_float32_is_computed_in_torch_where_the_kernels_lack_it(
    stage: str, engines: Accelerator, engine: DescribeEngine
) -> None:
    built = build(engines, engine(stage, "BF16", dtype="float32"))
    assert set(built.dtypes.values()) == {"float32"}
    assert built.forms["RMSNorm"] == ["forward_native"]
    assert built.forms["UnquantizedFusedMoEMethod"] == ["all_experts"]
    if stage == "talker_ar":
        assert built.forms["SiluAndMul"] == ["forward_native"]
