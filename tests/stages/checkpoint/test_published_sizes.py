"""The plan of the 30B model agrees with published figures for the memory that this model needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omni_pipeline.config.schema import Config
from omni_pipeline.deployment.checkpoint import Checkpoint, Stored, describe_checkpoint, described
from omni_pipeline.deployment.memory_plan import Holding, Placement, place
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.gpus import parse
from stages.topology import QWEN3_OMNI

GIB = 1024**3

# Memory budgets of stages in SGLang-Omni 0.1.9's configurations, as fractions of one GPU's memory.
PEERS = {
    "H20-96GB": {"image_encoder": 0.025, "audio_encoder": 0.025, "thinker": 0.75, "talker_ar": 0.12, "code2wav": 0.02},
    "H200-141GB": {
        "image_encoder": 0.017, "audio_encoder": 0.017, "thinker": 0.769, "talker_ar": 0.123, "code2wav": 0.014,
    },
    "H100-80GB": {"image_encoder": 0.02, "audio_encoder": 0.02, "thinker": 0.78, "talker_ar": 0.10, "code2wav": 0.02},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(data: Path) -> str:
    return str(data / "qwen3_omni_30b")


@pytest.fixture(scope="module")
def checkpoint(model: str) -> Checkpoint:
    assert QWEN3_OMNI.checkpoint is not None
    return describe_checkpoint(model, QWEN3_OMNI.checkpoint)


def planned(model: str, checkpoint: Checkpoint, gpus: str, **settings: Any) -> Placement:
    return place(resolve(Config(model_path=model, **settings), parse(gpus)), checkpoint)


def holdings(placement: Placement) -> dict[str, Holding]:
    return {holding.stage: holding for device in placement.devices for holding in device.holdings}


def test_disabling_the_talker_saves_the_published_10_gb_give_or_take_two(model: str, checkpoint: Checkpoint) -> None:
    """The published figures are for Hugging Face Transformers, which loads and runs all parts of the model in one
    process.
    """
    spoken = holdings(planned(model, checkpoint, "1xH200-141GB", colocate=True))
    saved = sum(spoken[name].fixed for name in ("talker_ar", "code_predictor", "code2wav"))
    assert saved == pytest.approx(10e9, abs=2e9)


def test_weights_are_the_published_78_9_gb_less_what_hugging_face_computes_with(
    model: str, checkpoint: Checkpoint
) -> None:
    """According to the model card, a 15 s clip needs at least 78.9 GB of memory: the weights, and 8 to 9 GB of
    activations for this clip.

    The model card also has the memory for clips of 30 and 60 s. Each additional second of a clip needs 0.64 GB more. So
    a clip of length zero would need 69.3 GB, and this should be the size of the weights.
    """
    weights = sum(holding.weights for holding in holdings(planned(model, checkpoint, "1xH200-141GB")).values())
    no_clip = 78.9e9 - 15 * (107.7e9 - 78.9e9) / 45
    assert weights == pytest.approx(no_clip, rel=0.03)


@pytest.mark.parametrize("gpu", PEERS)
def test_the_peers_budgets_hold_our_weights(gpu: str, model: str, checkpoint: Checkpoint) -> None:
    memory = parse(gpu)[0].memory
    planned_ = holdings(planned(model, checkpoint, gpu, colocate=True))
    for stage, fraction in PEERS[gpu].items():
        own = planned_[stage]
        assert own.weights <= fraction * memory, stage


@pytest.mark.parametrize("gpu", PEERS)
def test_thinker_and_talker_get_the_peers_share_give_or_take_a_tenth_of_the_gpu(
    gpu: str, model: str, checkpoint: Checkpoint
) -> None:
    memory = parse(gpu)[0].memory
    planned_ = holdings(planned(model, checkpoint, gpu, colocate=True))
    for stage in ("thinker", "talker_ar"):
        assert planned_[stage].total / memory == pytest.approx(PEERS[gpu][stage], abs=0.10), stage


def test_the_vocoder_takes_the_peers_1_4_to_1_6_gib_give_or_take_a_half(model: str, checkpoint: Checkpoint) -> None:
    own = holdings(planned(model, checkpoint, "2xH100-80GB"))["code2wav"]
    assert own.weights + own.state + own.activations == pytest.approx(1.5 * GIB, abs=0.5 * GIB)


@pytest.mark.parametrize("gpu", PEERS)
def test_the_peers_single_gpu_placements_fit_ours_too(gpu: str, model: str, checkpoint: Checkpoint) -> None:
    placement = planned(model, checkpoint, gpu, colocate=True)
    assert placement.fits, placement.problems
    assert placement.requests is not None
    assert placement.requests >= 16  # the other servers' figures for one GPU are for 16 streams


def test_a_checkpoint_of_half_the_weights_leaves_the_rest_to_the_caches(model: str, checkpoint: Checkpoint) -> None:
    """The checkpoint is in FP8 as other servers use it: thinker and talker are quantised, but the predictor is not."""
    quantised = Checkpoint(
        checkpoint.path,
        checkpoint.config,
        {
            name: Stored(stored.elements, stored.elements, fixed=True)
            if name.startswith(("thinker.model.layers.", "talker.model.layers.")) and name.endswith("_proj.weight")
            else stored
            for name, stored in checkpoint.tensors.items()
        },
    )
    plain, light = (planned(model, each, "1xH100-80GB", colocate=True) for each in (checkpoint, quantised))
    assert holdings(light)["code_predictor"].weights == holdings(plain)["code_predictor"].weights
    assert holdings(light)["thinker"].weights == pytest.approx(0.51 * holdings(plain)["thinker"].weights, rel=0.01)
    assert light.caches[0].tokens > 5 * plain.caches[0].tokens


@pytest.mark.parametrize("name", ["fp8-block", "int4-packed"])
def test_a_cpu_holds_quantised_weights_in_float32(model: str, checkpoint: Checkpoint, data: Path, name: str) -> None:
    published = json.loads((data / "quantization_configs.json").read_text())
    config = {**checkpoint.config, "quantization_config": published[name]}
    assert QWEN3_OMNI.checkpoint is not None
    stored = described(checkpoint.path, config, QWEN3_OMNI.checkpoint)
    settings = resolve(Config(model_path=model, device="cpu"), ())
    light, plain = (holdings(place(settings, each)) for each in (stored, checkpoint))
    assert {stage: own.weights for stage, own in light.items()} == {stage: own.weights for stage, own in plain.items()}
    assert sum(own.weights for own in light.values()) == pytest.approx(131 * GIB, rel=0.01)


def test_four_bits_leave_a_quarter_of_the_thinkers_experts_and_their_scales(
    model: str, checkpoint: Checkpoint, data: Path
) -> None:
    published = json.loads((data / "quantization_configs.json").read_text())
    assert QWEN3_OMNI.checkpoint is not None
    weights = {}
    for name in ("int4-packed", "int4-awq", "int4-gptq"):
        config = {**checkpoint.config, "quantization_config": published[name]}
        own = holdings(planned(model, described("x", config, QWEN3_OMNI.checkpoint), "1x48GB", colocate=True))
        weights[name] = own["thinker"].weights
        assert own["talker_ar"].weights == holdings(planned(model, checkpoint, "1xH200-141GB"))["talker_ar"].weights
    # The thinker has 29.9 G four-bit numbers, with a 16-bit scale for each 32 or 128 numbers (AWQ: a zero point too),
    # and 0.6 G unquantised numbers.
    projections, plain = 29.906e9, 2 * 0.623e9
    assert weights["int4-packed"] == pytest.approx(projections * (4 + 16 / 32) / 8 + plain, rel=0.005)
    assert weights["int4-awq"] == pytest.approx(projections * (4 + 20 / 128) / 8 + plain, rel=0.005)
    assert weights["int4-gptq"] == pytest.approx(weights["int4-awq"], rel=0.01)
