"""A stage reads only its part of a checkpoint. If this part does not match the stage's modules, the error at the
stage's start names the tensors.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeVisionEncoder

from omni_pipeline.errors import StartupError
from stages.checkpoint.weights import encoder_dtype, load_part, read_tensors

PREFIX = "thinker.visual."


@pytest.fixture(scope="module")
def tensors(tiny_checkpoint: Path) -> dict[str, torch.Tensor]:
    weights = load_file(tiny_checkpoint / "model.safetensors")
    return {name: tensor for name, tensor in weights.items() if name.startswith(PREFIX)}


@pytest.fixture(scope="module")
def config(tiny_checkpoint: Path) -> Qwen3OmniMoeConfig:
    return Qwen3OmniMoeConfig.from_pretrained(tiny_checkpoint)


def load(directory: Path, config: Qwen3OmniMoeConfig) -> Qwen3OmniMoeVisionEncoder:
    vision = config.thinker_config.vision_config
    return load_part(Qwen3OmniMoeVisionEncoder, vision, directory, PREFIX, torch.float32, "cpu")


def test_the_part_has_the_checkpoints_weights(
    tiny_checkpoint: Path, tensors: dict[str, torch.Tensor], config: Qwen3OmniMoeConfig
) -> None:
    state = load(tiny_checkpoint, config).state_dict()
    assert {PREFIX + name for name in state} == set(tensors)
    assert all(torch.equal(state[name.removeprefix(PREFIX)], tensor) for name, tensor in tensors.items())


def test_shards_are_found_by_the_index_and_others_are_not_opened(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    names = sorted(tensors)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, tmp_path / file)
    weight_map = {name: file for file, own in halves.items() for name in own}
    weight_map["thinker.model.norm.weight"] = "not-downloaded.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert set(read_tensors(tmp_path, PREFIX)) == {name.removeprefix(PREFIX) for name in names}


def test_a_missing_tensor_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], config: Qwen3OmniMoeConfig
) -> None:
    save_file({name: tensors[name] for name in tensors if "pos_embed" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(StartupError, match=r"pos_embed\.weight"):
        load(tmp_path, config)


def test_a_tensor_of_another_shape_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], config: Qwen3OmniMoeConfig
) -> None:
    wrong = tensors | {f"{PREFIX}pos_embed.weight": torch.zeros(2, 2)}
    save_file(wrong, tmp_path / "model.safetensors")
    with pytest.raises(StartupError, match="pos_embed"):
        load(tmp_path, config)


def test_a_checkpoint_without_the_part_is_refused(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(StartupError, match="not a Qwen3-Omni checkpoint"):
        read_tensors(tmp_path, PREFIX)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(StartupError, match=r"model\.safetensors"):
        read_tensors(tmp_path, PREFIX)


@pytest.mark.parametrize(("option", "expected"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_data_type_on_a_cpu(config: Qwen3OmniMoeConfig, option: str | None, expected: torch.dtype) -> None:
    assert encoder_dtype(option, config, "cpu") == expected


@pytest.mark.parametrize("option", ["int8", "double precision", "nn"])
def test_an_unknown_data_type_is_refused(config: Qwen3OmniMoeConfig, option: str) -> None:
    with pytest.raises(StartupError, match=option):
        encoder_dtype(option, config, "cpu")
