"""If SGLang cannot compute with the weights of a checkpoint, the checkpoint is refused at start, and the error gives
the reason. Where this is possible on a CPU, the tests confirm the reason with SGLang's own code.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from msgspec import structs

from omni_pipeline.config.schema import Config, StageConfig
from omni_pipeline.deployment.checkpoint import described
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.deployment.stage_checks import check_stages
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import parse
from stages.checkpoint.quantised_tensors import entries
from stages.checkpoint.quantization import read
from stages.sglang_engine import environment
from stages.topology import QWEN3_OMNI
from tests.quantised import RECIPES

environment.prepare()  # this call must come before any import of SGLang
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE  # noqa: E402
from sglang.srt.layers.quantization.compressed_tensors.schemes import CompressedTensorsWNA16MoE  # noqa: E402
from sglang.srt.layers.quantization.gptq.gptq import GPTQMarlinConfig  # noqa: E402
from sglang.srt.layers.quantization.gptq.schemes import GPTQMarlinMoEScheme  # noqa: E402
from sglang.srt.layers.quantization.marlin_utils import MARLIN_SUPPORTED_GROUP_SIZES  # noqa: E402

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}

Refusal = Callable[..., str]


@pytest.fixture
def refusal(data: Path) -> Refusal:
    """A function that returns the error for the 30B model with this quantisation on these GPUs. The error is empty if
    the model can be served.
    """
    config = json.loads((data / "qwen3_omni_30b" / "config.json").read_text())
    # The widths are those of the 30B model, but there are fewer layers.
    for part in ("thinker_config", "talker_config"):
        config[part]["text_config"] |= {"num_hidden_layers": 2, "num_experts": 8}
    published = json.loads((data / "quantization_configs.json").read_text())

    def told(said: str | dict[str, Any], gpus: str, ranks: int = 1, without: str = "", more: str = "") -> str:
        own = published[said] if isinstance(said, str) else said
        assert QWEN3_OMNI.checkpoint is not None
        checkpoint = described("x", {**config, "quantization_config": own}, QWEN3_OMNI.checkpoint)
        for name in [name for name in checkpoint.tensors if without and name.endswith(without)]:
            del checkpoint.tensors[name]
        if more:
            checkpoint.tensors[more] = checkpoint.tensors["thinker.model.norm.weight"]
        stages = {"thinker": StageConfig(tp_size=ranks)}
        settings = Config(model_path="x", stages=stages, device="auto" if gpus else "cpu")
        try:
            check_stages(resolve(settings, parse(gpus) if gpus else ()), checkpoint)
        except StartupError as error:
            return str(error)
        return ""

    return told


@pytest.mark.parametrize("name", ["fp8-block", "fp8-tensor", "fp8-channel", "int4-packed", "int4-awq", "int4-gptq"])
def test_published_forms_are_served_on_a_hopper_and_on_a_cpu(refusal: Refusal, name: str) -> None:
    assert refusal(name, "2xH100-80GB") == ""
    assert refusal(name, "") == ""


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        (
            "fp8-block",
            "1xA100-80GB",
            "stages.thinker: experts in fp8 with 8 bits, blocks of (128, 128) need comp",
        ),
        ("fp8-channel", "1xRTX3090-24GB", "need compute capability 8.9, but this GPU has 8.6."),
        ("int4-awq", "1xT4-16GB", "need compute capability 8.0, but this GPU has 7.5."),
        ("int4-awq", "1xRTX3090-24GB", ""),
        ("int4-packed", "1xA100-80GB", ""),
        ("fp8-block", "1x80GB", ""),  # the GPU's compute capability is unknown
    ],
)
def test_gpu_has_to_be_able_to(refusal: Refusal, name: str, gpus: str, message: str) -> None:
    told = refusal(name, gpus)
    assert message in told if message else not told


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group_size": 16}, "SGLang's kernels support only the group sizes 32, 64 and 128, not 16"),
        ({"sym": False}, "SGLang has no kernels for experts in gptq with 4 bits, groups of 128 with zero points"),
    ],
)
def test_what_marlin_lacks_is_refused_on_a_gpu_and_served_on_a_cpu(
    refusal: Refusal, changed: dict[str, Any], message: str
) -> None:
    assert message in refusal(GPTQ | changed, "1xH100-80GB")
    assert refusal(GPTQ | changed, "") == ""
    assert MARLIN_SUPPORTED_GROUP_SIZES == [-1, 32, 64, 128]
    assert (4, False) not in GPTQMarlinConfig.TYPE_MAP


def test_ranks_of_gptq_are_refused(refusal: Refusal) -> None:
    told = refusal(GPTQ, "2xH100-80GB", ranks=2)
    assert "with several ranks, SGLang uses wrong scales for experts in gptq with 4 bits, groups of 128" in told
    assert told.endswith("these numbers of ranks can share it evenly: 1.")


@pytest.mark.parametrize("reordered", [False, True])
def test_sglang_does_give_ranks_of_gptq_scales_that_their_kernel_takes_for_others(reordered: bool) -> None:
    """To get the number of inputs of a group, SGLang's kernel divides the number of the rank's inputs by the number of
    groups whose scales the rank has. If this test fails, SGLang has been fixed.
    """
    said = GPTQ | {"desc_act": reordered}
    layer = torch.nn.Module()
    layer.moe_tp_size = 2
    scheme = GPTQMarlinMoEScheme(GPTQMarlinConfig.from_config(said))
    scheme.create_weights(
        layer, num_experts=1, hidden_size=2048, intermediate_size_per_partition=384, params_dtype=torch.bfloat16
    )
    taken = 384 // layer.w2_scales.shape[1]
    # With activation order, a rank has the scales of three of the six groups, but its inputs may belong to any of the
    # six groups.
    assert (taken, layer.w2_scales.shape[1]) == ((128, 3) if reordered else (64, 6))


def test_sglang_has_no_place_for_zero_points_of_experts_as_they_are_packed() -> None:
    """SGLang's loader transposes weights and scales but not zero points. If this fails, SGLang has been fixed."""
    zeros = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=32)
    layer = torch.nn.Module()
    layer.moe_tp_size = 1
    CompressedTensorsWNA16MoE(SimpleNamespace(quant_format="pack-quantized"), zeros).create_weights(
        layer, num_experts=1, hidden_size=2048, intermediate_size_per_partition=768, params_dtype=torch.bfloat16
    )
    found = read({"quantization_config": RECIPES["packed-zeros"].said}, "thinker")
    assert found is not None
    stored = {name: shape for name, shape, _ in entries(structs.replace(found, group=32), 2048, 768, 2)}
    assert layer.w2_weight_packed.shape[1:] == stored["weight_packed"][::-1]
    assert layer.w2_weight_scale.shape[1:] == stored["weight_scale"][::-1]
    assert layer.w2_weight_zero_point.shape[1:] == stored["weight_zero_point"][::-1]
    assert 'and "zero" not in weight_name' in inspect.getsource(FusedMoE._weight_loader_impl)


def test_ranks_of_marlin_get_whole_tiles(refusal: Refusal) -> None:
    assert refusal("int4-packed", "8xH100-80GB", ranks=4) == ""
    told = refusal("int4-packed", "8xH100-80GB", ranks=8)
    assert "moe_intermediate_size is 768, so each rank would get 96, which is not a multiple of 64" in told
    assert told.endswith("these numbers of ranks can share it evenly: 1, 2, 4.")


def test_tensor_that_a_form_needs_is_missed(refusal: Refusal) -> None:
    told = refusal("int4-awq", "", without="layers.1.self_attn.q_proj.scales")
    assert "the checkpoint has no thinker.model.layers.1.self_attn.q_proj.scales, which awq with 4 bits" in told


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("thinker.lm_head.qweight", "is quantised, but only projections in decoder layers may be"),
        ("thinker.model.layers.0.mlp.gate.qweight", "is quantised, but only projections in decoder layers may be"),
        ("talker.code_predictor.model.layers.0.mlp.up_proj.qweight", "only the decoders of thinker and talker may be"),
        ("thinker.visual.blocks.0.attn.qkv.weight_packed", "only the decoders of thinker and talker may be"),
        ("code2wav.pre_transformer.layers.0.mlp.up_proj.weight_scale_inv", "only the decoders of thinker and talker"),
    ],
)
def test_what_must_be_plain_is_named_where_it_is_not(refusal: Refusal, more: str, message: str) -> None:
    told = refusal("int4-awq", "", more=more)
    assert more in told
    assert message in told


def test_experts_that_differ_are_refused(refusal: Refusal) -> None:
    left = {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["layers.1.mlp.experts.7."]}
    assert "but SGLang joins them in one layer (thinker.model.layers.1.mlp.experts)" in refusal(left, "1xH100-80GB")
