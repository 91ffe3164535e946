"""The configuration for SGLang lists exactly the layers that are not quantised in a checkpoint. It uses the names in
our model definitions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sglang.srt.layers.quantization.compressed_tensors.compressed_tensors as compressed
from sglang.srt.layers.quantization.awq.awq import AWQConfig, is_layer_skipped_awq
from sglang.srt.layers.quantization.compressed_tensors.utils import should_ignore_layer
from sglang.srt.layers.quantization.fp8 import Fp8Config
from sglang.srt.layers.quantization.gptq.gptq import GPTQMarlinConfig
from sglang.srt.layers.quantization.utils import get_dynamic_override, is_layer_skipped
from sglang.srt.models.qwen3_moe import Qwen3MoeForCausalLM

from omni_pipeline.errors import StartupError
from stages.checkpoint import quantization
from stages.checkpoint.quantised_tensors import needed
from stages.sglang_engine.engine_config import STORED, overrides, translated
from tests.quantised import RECIPES, quantise

FUSED = Qwen3MoeForCausalLM.packed_modules_mapping
MODULES = [f"self_attn.{name}_proj" for name in "qkvo"]
MODULES += [f"mlp.experts.{expert}.{name}_proj" for expert in range(2) for name in ("gate", "up", "down")]
MODULES += [f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")]
LAYERS = (
    "self_attn.qkv_proj",
    "self_attn.o_proj",
    "mlp.experts",
    "mlp.shared_expert.gate_up_proj",
    "mlp.shared_expert.down_proj",
)

# The modules that are not quantised in a model of twelve layers, by the fused layer to which they belong.
PLAIN = {
    "model.layers.1.self_attn.qkv_proj": MODULES[:3],
    "model.layers.2.self_attn.o_proj": MODULES[3:4],
    "model.layers.3.mlp.experts": MODULES[4:10],
    "model.layers.1.mlp.shared_expert.gate_up_proj": MODULES[10:12],
    "model.layers.11.mlp.shared_expert.down_proj": MODULES[12:],
}
WITHOUT_EXPERTS = {name: modules for name, modules in PLAIN.items() if not name.endswith("experts")}


def tensors(found: quantization.Quantization, plain: dict[str, list[str]]) -> list[str]:
    """Names of a talker's tensors."""
    kept = {f"{'.'.join(name.split('.')[:3])}.{module}" for name, modules in plain.items() for module in modules}
    return [
        f"talker.model.layers.{layer}.{module}.{suffix}"
        for layer in range(12)
        for module in MODULES
        for suffix in (["weight"] if f"model.layers.{layer}.{module}" in kept else needed(found))
    ]


def fp8(said: dict[str, Any]) -> Callable[[str], bool]:
    skipped = Fp8Config.from_config(said).ignored_layers
    return lambda name: is_layer_skipped(name, skipped, fused_mapping=FUSED)


def awq(said: dict[str, Any]) -> Callable[[str], bool]:
    skipped = AWQConfig.from_config(said).modules_to_not_convert
    return lambda name: is_layer_skipped_awq(name, skipped)


def gptq(said: dict[str, Any]) -> Callable[[str], bool]:
    config = GPTQMarlinConfig.from_config(said)
    return lambda name: get_dynamic_override(config, layer_name=name) is False


def by_module(said: dict[str, Any]) -> Callable[[str], bool]:
    config = compressed.CompressedTensorsConfig.from_config(said)
    return lambda name: should_ignore_layer(
        f"{name}.0.gate_proj" if name.endswith("experts") else name, ignore=config.ignore, fused_mapping=FUSED
    )


@pytest.mark.parametrize(
    ("form", "skips", "plain"),
    [
        ("fp8-block", fp8, PLAIN),
        ("fp8-tensor", fp8, PLAIN),
        ("fp8-channel", by_module, PLAIN),
        ("awq", awq, PLAIN),
        ("gptq", gptq, WITHOUT_EXPERTS),
        ("packed", by_module, PLAIN),
    ],
)
def test_sglang_leaves_plain_what_is(
    form: str, skips: Callable[[dict[str, Any]], Callable[[str], bool]], plain: dict[str, list[str]]
) -> None:
    said = RECIPES[form].said
    found = quantization.read({"quantization_config": said}, "talker")
    assert found is not None
    told = translated(found, said, tensors(found, plain))
    assert told is not None
    skipped = skips(told)
    names = [f"model.layers.{layer}.{name}" for layer in range(12) for name in LAYERS]
    assert [name for name in names if skipped(name)] == [name for name in names if name in plain]


def test_gptq_with_plain_experts_is_refused() -> None:
    said = RECIPES["gptq"].said
    found = quantization.read({"quantization_config": said}, "talker")
    assert found is not None
    with pytest.raises(StartupError, match=r"model.layers.3.mlp.experts is not quantised: SGLang reads a GPTQ"):
        translated(found, said, tensors(found, PLAIN))


@pytest.mark.parametrize("form", ["fp8-block", "awq", "gptq", "packed"])
def test_part_that_is_left_out_is_not_quantised_for_sglang(tiny_checkpoint: Path, tmp_path: Path, form: str) -> None:
    quantise(tiny_checkpoint, tmp_path / "stored", tmp_path / "truth", {"thinker": form})
    path = str(tmp_path / "stored")
    assert overrides(path, "Qwen3OmniTalker", "cuda")["quantization_config"] is None
    on_gpu = overrides(path, "Qwen3OmniThinker", "cuda")["quantization_config"]
    assert on_gpu["quant_method"] == RECIPES[form].said["quant_method"]
    on_cpu = overrides(path, "Qwen3OmniThinker", "cpu")
    assert on_cpu["quantization_config"] is None
    assert quantization.read({"quantization_config": on_cpu[STORED]}, "thinker") is not None
    assert overrides(str(tiny_checkpoint), "Qwen3OmniThinker", "cuda") == {}
