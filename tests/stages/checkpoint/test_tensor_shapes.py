"""A checkpoint's tensors are derived exactly from its configuration alone, and match the published sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import Qwen3OmniMoeConfig

from omni_pipeline.deployment.checkpoint import Stored, inspect
from omni_pipeline.errors import StartupError
from stages.checkpoint.tensor_shapes import stored_tensors, tensor_shapes
from stages.topology import QWEN3_OMNI
from tests.quantised import RECIPES, quantise

# Published figures of the 30B model: the number of parameters of its parts (from the Qwen3-Omni report and the model
# card), the total number of parameters, and the size of the checkpoint on the hub.
AUDIO, PREDICTOR, VOCODER, THINKER = 648e6, 142e6, 216e6, 30.5e9
PARAMETERS = 35_259_818_545
BYTES = 67_253 * 1024**2

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.fixture(scope="module")
def large(data: Path) -> dict[str, Any]:
    """The configuration of the 30B model."""
    config: dict[str, Any] = json.loads((data / "qwen3_omni_30b/config.json").read_text())
    return config


def parameters(config: dict[str, Any], prefix: str) -> int:
    return sum(math.prod(shape) for name, shape in tensor_shapes(config).items() if name.startswith(prefix))


@pytest.mark.parametrize("name", ["tiny", "nano"])
def test_names_and_shapes_are_those_on_disk(name: str, checkpoints: Callable[[str], Path]) -> None:
    path = checkpoints(name)
    with safe_open(path / "model.safetensors", "pt") as file:
        on_disk = {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118
    assert tensor_shapes(json.loads((path / "config.json").read_text())) == on_disk


def test_a_configuration_that_transformers_has_written_says_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = json.loads((tiny_checkpoint / "config.json").read_text())
    Qwen3OmniMoeConfig(**ours).save_pretrained(tmp_path)
    assert tensor_shapes(json.loads((tmp_path / "config.json").read_text())) == tensor_shapes(ours)


def test_the_30b_model_has_the_published_number_of_parameters(large: dict[str, Any]) -> None:
    assert parameters(large, "") == PARAMETERS


@pytest.mark.parametrize(
    ("prefix", "published"),
    [("thinker.audio_tower.", AUDIO), ("talker.code_predictor.", PREDICTOR), ("code2wav.", VOCODER)],
)
def test_its_parts_have_the_published_numbers_within_half_a_percent(
    large: dict[str, Any], prefix: str, published: float
) -> None:
    assert parameters(large, prefix) == pytest.approx(published, rel=0.005)


def test_its_thinker_has_the_published_30_5_billion_within_half_a_percent(large: dict[str, Any]) -> None:
    decoder = parameters(large, "thinker.model.") + parameters(large, "thinker.lm_head.")
    assert decoder == pytest.approx(THINKER, rel=0.005)


def test_its_weights_have_the_published_size_within_a_tenth_of_a_percent(large: dict[str, Any]) -> None:
    assert sum(size for _, size, _ in stored_tensors(large).values()) == pytest.approx(BYTES, rel=0.001)


def test_fp8_halves_the_linear_layers_of_thinker_and_talker_and_nothing_else(large: dict[str, Any]) -> None:
    plain, quantised = stored_tensors(large), stored_tensors(large | {"quantization_config": FP8})
    halved = {name for name, stored in plain.items() if quantised[name] != stored}
    assert all(quantised[name] == (plain[name][0], plain[name][1] // 2, True) for name in halved)
    linear = {name for name in plain if ".layers." in name and name.endswith("_proj.weight")}
    assert halved == {name for name in linear if name.startswith(("thinker.model.", "talker.model."))}
    scales = [size for name, (_, size, _) in quantised.items() if name not in plain]
    assert len(scales) == len(halved)
    assert sum(scales) < 0.001 * sum(size for _, size, _ in plain.values())
    # The experts and projections of thinker and talker have 30.5 B parameters. FP8 saves half of the bytes of these
    # parameters.
    saved = sum(size for _, size, _ in plain.values()) - sum(size for _, size, _ in quantised.values())
    assert saved == pytest.approx(sum(plain[name][1] for name in halved) / 2, rel=0.001)


@pytest.mark.parametrize("form", RECIPES)
def test_a_quantised_checkpoint_is_told_from_its_configuration_too(
    tiny_checkpoint: Path, tmp_path: Path, form: str
) -> None:
    parts = ["thinker"] if form.startswith("packed") else ["thinker", "talker"]
    assert quantise(tiny_checkpoint, tmp_path / "quantised", tmp_path / "truth", dict.fromkeys(parts, form)) > 100
    assert QWEN3_OMNI.checkpoint is not None
    on_disk = inspect(tmp_path / "quantised", QWEN3_OMNI.checkpoint)
    told = {name: Stored(*stored) for name, stored in stored_tensors(on_disk.config).items()}
    assert told.keys() == on_disk.tensors.keys()
    # Scales keep the type in which they are stored: float16 in this checkpoint, although the checkpoint's own type is
    # float32.
    scales = {name for name in told if form.startswith(("packed", "fp8-channel")) and name.endswith("weight_scale")}
    assert all(told[name] == on_disk.tensors[name] for name in told.keys() - scales)
    assert all(told[name].elements == on_disk.tensors[name].elements for name in scales)


def test_what_an_fp8_checkpoint_leaves_out_keeps_its_size(large: dict[str, Any]) -> None:
    kept = FP8 | {"modules_to_not_convert": ["talker"]}
    quantised = stored_tensors(large | {"quantization_config": kept})
    assert not any(name.endswith("_scale_inv") for name in quantised if name.startswith("talker."))


def test_a_size_that_is_missing_is_named(large: dict[str, Any]) -> None:
    thinker = {**large["thinker_config"], "text_config": {}}
    with pytest.raises(StartupError, match=r"hidden_size.*thinker_config.text_config"):
        tensor_shapes(large | {"thinker_config": thinker})


def test_a_model_that_only_writes_has_no_talker(large: dict[str, Any]) -> None:
    assert parameters(large | {"enable_audio_output": False}, "talker.") == 0
