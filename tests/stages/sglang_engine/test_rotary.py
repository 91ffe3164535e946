"""The rotary angles have the reference's frequencies, and are on the device on which the model is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeThinkerTextRotaryEmbedding

from stages.sglang_engine.rotary import InterleavedAngles

HEAD_DIM, THETA, SECTIONS = 128, 1_000_000, [24, 20, 20]


@pytest.fixture
def loading() -> None:
    """Set the default device during a test, as SGLang does while it builds a model."""
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_frequencies_are_the_references_to_the_last_bit(loading: None, data: Path) -> None:
    config = Qwen3OmniMoeConfig(**json.loads((data / "qwen3_omni_30b" / "config.json").read_text()))
    reference = Qwen3OmniMoeThinkerTextRotaryEmbedding(config.thinker_config.text_config)
    angles = InterleavedAngles(HEAD_DIM, THETA, SECTIONS)
    assert angles.inverse.dtype == torch.float32
    assert torch.equal(angles.inverse, reference.inv_freq)


def test_tables_are_on_the_device_on_which_the_model_is_built(loading: None) -> None:
    with torch.device("meta"):
        angles = InterleavedAngles(HEAD_DIM, THETA, SECTIONS)
    assert {name: buffer.device.type for name, buffer in angles.named_buffers()} == {"inverse": "meta", "axis": "meta"}
    positions = torch.zeros(3, 5, device="meta")
    assert [part.device.type for part in angles(positions)] == ["meta", "meta"]


def test_each_axis_has_its_share_of_the_frequencies() -> None:
    axis = InterleavedAngles(HEAD_DIM, THETA, SECTIONS).axis
    assert [int((axis == number).sum()) for number in range(3)] == SECTIONS
    assert axis[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert set(axis[60:].tolist()) == {0}
