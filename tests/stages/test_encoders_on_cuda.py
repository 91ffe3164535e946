"""The encoders in bfloat16 on a simulated GPU make the expected copies and kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeAudioEncoder,
    Qwen3OmniMoeVisionEncoder,
)

from omni_pipeline.wire.messages import Start
from omni_pipeline.wire.tensor import Tensor
from stages.encoders.audio_encoder import AudioEncoder
from stages.encoders.image_encoder import ImageEncoder
from stages.messages import AudioItem, AudioWork, VisionItem, VisionWork
from stages.options import EncoderOptions
from tests.cuda_rules import CudaRules

# Numbers of copies for one batch, by function. They do not depend on the media in the batch or on the number of layers.
COPIES = {
    "image": ({"ImageEncoder.encode": 1, "ImageEncoder._bookkeeping": 3}, {"ImageEncoder.encode": 2}),
    "audio": ({"AudioEncoder.encode": 2}, {"AudioEncoder.encode": 1}),
}

# Numbers of kernels for one picture, and for one sound with a single window, with the 30B model's sizes.
KERNELS = {"image": 739, "audio": 466}


def pictures(tower: Any, frames: Sequence[int]) -> VisionWork:
    """Encoder input with one item for each number: a picture for the number 1, or a clip for a larger number."""
    config = tower.config
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    keys = enumerate(frames)
    return VisionWork([VisionItem(b"%d" % key, (t, 4, 8), Tensor.of(torch.zeros(t * 32, width))) for key, t in keys])


def sounds(tower: Any, lengths: Sequence[int]) -> AudioWork:
    """Encoder input with sounds that have these numbers of mel frames."""
    mels = [torch.zeros(tower.num_mel_bins, length) for length in lengths]
    return AudioWork([AudioItem(b"%d" % key, Tensor.of(mel)) for key, mel in enumerate(mels)], pad_frames=100)


def encode(stage: Any, work: Any) -> Any:
    stage.receive(Start("r", "preprocessing", stage.name, work))
    [answer] = stage.step()
    return answer.body


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_a_batch_copies_as_often_for_many_media_as_for_one(
    cuda: CudaRules, on_cuda: Callable[..., Any], kind: str
) -> None:
    build: Any = ImageEncoder if kind == "image" else AudioEncoder
    stage = build(on_cuda(f"{kind}_encoder", EncoderOptions(dtype="bfloat16", cache_bytes=0)))
    to_device, to_host = COPIES[kind]
    module = build.__module__
    # The second batch has a picture and two clips, or three sounds. The longest sound has two windows.
    for sizes in ([1], [1, 3, 2]) if kind == "image" else ([150], [40, 100, 1000]):
        work = pictures(stage._tower, sizes) if kind == "image" else sounds(stage._tower, sizes)
        cuda.forget()
        body = encode(stage, work)
        assert [rows.dtype for rows in body.embeds] == ["float32"] * len(sizes)
        assert cuda.to_device == {f"{module}:{name}": count for name, count in to_device.items()}
        assert cuda.to_host == {f"{module}:{name}": count for name, count in to_host.items()}


def test_kernels_of_one_item_at_the_sizes_of_the_30b_model(
    cuda: CudaRules, on_cuda: Callable[..., Any], published: Qwen3OmniMoeConfig
) -> None:
    thinker = published.thinker_config
    towers = {
        "image": (ImageEncoder, Qwen3OmniMoeVisionEncoder, thinker.vision_config),
        "audio": (AudioEncoder, Qwen3OmniMoeAudioEncoder, thinker.audio_config),
    }
    found = {}
    for kind, (build, tower, config) in towers.items():
        stage: Any = build(on_cuda(f"{kind}_encoder", EncoderOptions(dtype="bfloat16", cache_bytes=0)))
        with torch.device("cuda"):
            stage._tower = tower._from_config(config, dtype=torch.bfloat16).eval()
        cuda.forget()
        body = encode(stage, pictures(stage._tower, [1]) if kind == "image" else sounds(stage._tower, [800]))
        assert body.embeds[0].shape == ((8, 2048) if kind == "image" else (104, 2048))
        found[kind] = cuda.kernels.total()
    assert found == KERNELS
