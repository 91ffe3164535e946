"""A ``quantization_config`` is read correctly. If it cannot be served, the error names the setting that is the
reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omni_pipeline.errors import StartupError
from stages.checkpoint.quantization import Form, Quantization, Sharing, plain_config, read

LAYER = "thinker.model.layers.3."
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}


def compressed(form: str = "pack-quantized", **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {**INT4, **weights}, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


@pytest.fixture(scope="module")
def published(data: Path) -> dict[str, dict[str, Any]]:
    """Published ``quantization_config`` sections. The keys are names of formats, for example ``fp8-block``."""
    found: dict[str, dict[str, Any]] = json.loads((data / "quantization_configs.json").read_text())
    return found


def understood(said: dict[str, Any], part: str = "thinker") -> Quantization:
    found = read({"quantization_config": said}, part)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "form", "bits", "sharing", "group"),
    [
        ("fp8-block", Form.FP8, 8, Sharing.BLOCK, 0),
        ("fp8-tensor", Form.FP8, 8, Sharing.TENSOR, 0),
        ("fp8-channel", Form.FLOAT, 8, Sharing.CHANNEL, 0),
        ("int4-packed", Form.PACKED, 4, Sharing.GROUP, 32),
        ("int4-awq", Form.AWQ, 4, Sharing.GROUP, 128),
        ("int4-gptq", Form.GPTQ, 4, Sharing.GROUP, 128),
        ("int4-auto-round", Form.GPTQ, 4, Sharing.GROUP, 128),
    ],
)
def test_published_configurations_are_understood(
    published: dict[str, dict[str, Any]], name: str, form: Form, bits: int, sharing: Sharing, group: int
) -> None:
    found = understood(published[name])
    assert (found.form, found.bits, found.sharing, found.group) == (form, bits, sharing, group)
    assert found.covers(f"{LAYER}self_attn.q_proj")
    assert found.covers(f"{LAYER}mlp.experts.17.down_proj")
    others = ("thinker.lm_head", "thinker.visual.blocks.0.attn.qkv", f"{LAYER}mlp.gate", "talker.codec_head")
    assert not any(map(found.covers, others))
    talker = understood(published[name], "talker").covers("talker.model.layers.0.self_attn.o_proj")
    assert talker == (name == "fp8-block"), "of these, only one quantises the talker"


@pytest.mark.parametrize(
    ("said", "left", "covered"),
    [
        (AWQ | {"modules_to_not_convert": ["layers.3.self"]}, "self_attn.q_proj", "mlp.experts.0.up_proj"),
        (GPTQ | {"dynamic": {r"-:.*\.self_attn\..*": {}}}, "self_attn.q_proj", "mlp.experts.0.up_proj"),
        (compressed() | {"ignore": [f"{LAYER}self_attn.q_proj"]}, "self_attn.q_proj", "self_attn.k_proj"),
        (compressed() | {"ignore": ["re:.*o_proj$"]}, "self_attn.o_proj", "self_attn.k_proj"),
        # If a parent module is in the list, its child modules are still quantised.
        (compressed() | {"ignore": [f"{LAYER}mlp.experts.0"]}, "mlp.gate", "mlp.experts.0.up_proj"),
        (
            {"quant_method": "fp8", "modules_to_not_convert": [f"{LAYER}mlp"]},
            "mlp.experts.0.up_proj",
            "self_attn.q_proj",
        ),
        (
            AUTO_ROUND | {"extra_config": {f"{LAYER}self_attn.q_proj": {"bits": 16}}},
            "self_attn.q_proj",
            "self_attn.k_proj",
        ),
        (AUTO_ROUND | {"extra_config": {r".*\.k_proj": {"bits": 16}}}, "self_attn.k_proj", "self_attn.q_proj"),
    ],
)
def test_each_form_lists_what_it_leaves_in_its_own_way(said: dict[str, Any], left: str, covered: str) -> None:
    assert understood(said).covers(LAYER + covered)
    assert not understood(said).covers(LAYER + left)


@pytest.mark.parametrize("inside", [("thinker_config",), ("thinker_config", "text_config")])
def test_a_part_may_have_a_section_of_its_own_that_names_its_modules_without_it(inside: tuple[str, ...]) -> None:
    config: dict[str, Any] = {"quantization_config": GPTQ | {"dynamic": {r"-:model\.layers\.3\.self_attn.*": {}}}}
    for section in reversed(inside):
        config = {section: config}
    found = read(config, "thinker")
    assert found is not None
    assert found.covers(f"{LAYER}mlp.experts.0.up_proj")
    assert not found.covers(f"{LAYER}self_attn.q_proj")
    assert read(config, "talker") is None
    assert read(plain_config(config), "thinker") is None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes', which cannot be served: its weights are"),
        ({"quant_method": "gguf"}, "quant_method 'gguf', which cannot be served: it is a separate file format"),
        ({"quant_method": "modelopt_fp4"}, "NVIDIA ModelOpt writes several formats"),
        ({"quant_method": "newest"}, "'newest', which cannot be served: use one of fp8, awq, gptq, auto-round, compr"),
        ({"bits": 4}, "specifies quant_method ''"),
        (AWQ | {"bits": 3}, "AWQ with 3 bits, which cannot be served: SGLang has AWQ kernels for 4 bits"),
        (AWQ | {"zero_point": False}, "AWQ with 'zero_point': false"),
        (AWQ | {"version": "gemv"}, "AWQ version 'gemv'"),
        (AWQ | {"group_size": -1}, "group_size -1"),
        (
            GPTQ | {"bits": 3},
            "GPTQ with 3 bits, which cannot be served: SGLang has kernels for experts of 4 and 8 bits",
        ),
        (GPTQ | {"dynamic": {"+:.*down_proj": {"bits": 8}}}, "dynamic rule '+:.*down_proj'"),
        ({"quant_method": "gptq", "bits": 4}, "quantization_config cannot be read: KeyError('group_size')"),
        (AUTO_ROUND | {"packing_format": "auto_round:llm_compressor"}, "AutoRound packing_format 'auto_round:llm_comp"),
        (AUTO_ROUND | {"extra_config": {"a": {"bits": 8}}}, "extra_config of 'a'"),
        (compressed("int-quantized", num_bits=8), "weights with the format 'int-quantized' and the type 'int'"),
        (compressed("nvfp4-pack-quantized", type="float"), "with the format 'nvfp4-pack-quantized'"),
        (compressed() | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "specifies a sparsity_config, which"),
        (compressed(num_bits=2), "pack-quantized with 2 bits"),
        (compressed() | {"config_groups": {"a": {}, "b": {}}}, "2 config_groups"),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "static"},
            "need the activat",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_cannot_be_served_is_refused_by_name(said: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        understood(said)
    assert str(caught.value).startswith("config.json: quantization_config ")
    assert message in str(caught.value)
