"""The compiled layers of the vocoder compute what torch computes."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeCode2WavDecoderResidualUnit,
    Qwen3OmniMoeSnakeBeta,
)

from stages.code2wav import cpu_units
from stages.code2wav.history import Streams
from stages.code2wav.streaming_vocoder import CompiledResidualUnit, ResidualUnit, Snake, _streaming

TOLERANCE = {"rtol": 1e-5, "atol": 3e-5}


def unit_of(channels: int, dilation: int) -> Qwen3OmniMoeCode2WavDecoderResidualUnit:
    torch.manual_seed(channels + dilation)
    unit = Qwen3OmniMoeCode2WavDecoderResidualUnit(channels, dilation).requires_grad_(False)
    for activation in (unit.act1, unit.act2):
        torch.nn.init.normal_(activation.alpha)
        torch.nn.init.normal_(activation.beta)
    return unit


@pytest.mark.parametrize("dilation", [1, 3, 9])
@pytest.mark.parametrize("channels", [4, 12, 96])
@torch.inference_mode()
def test_a_residual_unit_equals_the_references(channels: int, dilation: int) -> None:
    unit = unit_of(channels, dilation)
    compiled = _streaming(unit, 3)
    assert isinstance(compiled, CompiledResidualUnit)
    # Lengths of chunks. Some are shorter than the history, and some are longer than the pieces in which samples are
    # computed.
    chunks = 5, 40, 513, 1, 1030
    sound = torch.randn(2, channels, sum(chunks))
    expected = unit(sound)
    for _ in range(2):  # in the second round, the slots contain the end of the previous utterances
        done, parts = 0, []
        for chunk in chunks:
            streams = Streams.of([2, 0], [done, done], torch.device("cpu"))
            parts.append(compiled(sound[..., done : done + chunk], streams))
            done += chunk
        torch.testing.assert_close(torch.cat(parts, -1), expected, **TOLERANCE)


def test_units_of_other_kinds_are_left_to_torch() -> None:
    assert isinstance(_streaming(unit_of(6, 1), 1), ResidualUnit)
    assert isinstance(_streaming(unit_of(cpu_units.MOST_CHANNELS + 4, 1), 1), ResidualUnit)
    assert isinstance(_streaming(unit_of(8, 1).to(torch.bfloat16), 1), ResidualUnit)


@torch.inference_mode()
def test_an_activation_equals_the_references() -> None:
    layer = Qwen3OmniMoeSnakeBeta(5)
    layer.alpha.copy_(torch.tensor([-2.0, 0.0, 0.5, 1.0, 2.0]))
    x = torch.randn(2, 5, 3000) * 20
    streams = Streams.of([0, 1], [1, 1], torch.device("cpu"))
    torch.testing.assert_close(Snake(layer)(x, streams), layer(x), rtol=1e-5, atol=2e-4)


def test_the_published_vocoder_has_such_units() -> None:
    config = Qwen3OmniMoeConfig().code2wav_config
    narrow = config.decoder_dim // 2 ** len(config.upsample_rates)
    assert narrow <= cpu_units.MOST_CHANNELS
    assert narrow % 4 == 0
