"""Compiled frames equal the frames that the network computes in torch, whatever else is in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stages.code_predictor import CodePredictor
from stages.code_predictor.choice import CodeChoice, Draws
from stages.code_predictor.compiled_frames import CompiledFrames
from stages.code_predictor.network import ResidualNetwork
from stages.code_predictor.stage import load_network
from stages.messages import Sampling

GREEDY = Sampling()
WAYS = [
    GREEDY,
    Sampling(temperature=1.0, top_k=50, top_p=0.8, seed=1),
    Sampling(temperature=2.0, seed=2),
    Sampling(temperature=0.7, min_p=0.1, seed=3),
    Sampling(temperature=1.0, top_k=5, min_p=0.2, seed=4),
    Sampling(temperature=0.9, top_p=0.3, seed=5),
    Sampling(temperature=1.3, top_k=1, seed=6),
    Sampling(temperature=0.01, top_p=1e-9, seed=7),
]


@pytest.fixture(scope="module", params=["nano", "tiny"])
def network(request: Any, voice_context: Any) -> ResidualNetwork:
    context = voice_context(request.param, "code_predictor", max_batch=40)
    return load_network(context.model_path, "cpu", context.options)


def batch_of(network: ResidualNetwork, ways: list[Sampling], frame: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
    random = torch.Generator().manual_seed(frame)
    hidden = torch.randn(len(ways), network.hidden_size, generator=random)
    codes = torch.randint(0, network.vocab, (len(ways),), generator=random)
    rows = [(Draws(way), frame) for way in ways]
    return hidden, codes, CodeChoice.of(rows, network.codebooks - 1, network.vocab, network.device)


@pytest.mark.parametrize("ways", [[GREEDY], *([way] for way in WAYS[1:]), WAYS, [GREEDY, GREEDY], WAYS * 5])
@torch.inference_mode()
def test_equal_the_networks_frames(ways: list[Sampling], network: ResidualNetwork) -> None:
    compiled = CompiledFrames(network)
    for frame in range(3):
        batch = batch_of(network, ways, frame)
        codes, sums = compiled.frames(*batch)
        expected_codes, expected_sums = network.frames(*batch)
        assert torch.equal(codes, expected_codes)
        torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_frame_is_the_same_alone_and_in_a_batch(network: ResidualNetwork) -> None:
    compiled = CompiledFrames(network)
    hidden, codes, choice = batch_of(network, WAYS, 4)
    together, _ = compiled.frames(hidden, codes, choice)
    for row, way in enumerate(WAYS):
        own = CodeChoice.of([(Draws(way), 4)], network.codebooks - 1, network.vocab, network.device)
        alone, _ = compiled.frames(hidden[row : row + 1], codes[row : row + 1], own)
        assert alone[0].tolist() == together[row].tolist()


def test_the_stage_uses_them_on_one_thread_in_float32(voice_context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def frames_of(**options: Any) -> str:
        return type(CodePredictor(voice_context("nano", "code_predictor", **options))._frames_of.__self__).__name__

    assert frames_of() == "CompiledFrames"
    assert frames_of(record=False) == "ResidualNetwork"
    assert frames_of(dtype="bfloat16") == "FrameGraphs"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert frames_of() == "FrameGraphs"
