"""The code predictor in bfloat16 on a simulated GPU makes the expected copies and kernels, and can be captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration,
)

from omni_pipeline.wire.messages import Chunk, Start
from omni_pipeline.wire.tensor import Tensor
from stages.code_predictor import CodePredictor, graphs
from stages.code_predictor.choice import CodeChoice, Draws
from stages.code_predictor.network import ResidualNetwork
from stages.messages import FrameFeedback, FrameSeed, PredictorStart, Sampling
from stages.options import CodePredictorOptions
from tests.cuda_rules import CudaRules, HostRead

SAMPLED = Sampling(temperature=0.9, top_k=50, top_p=0.8, min_p=0.1, seed=1)

# Number of kernels for one frame with the 30B model's sizes. It does not depend on the number of utterances.
KERNELS = {"greedy": 2551, "sampled": 3011}


@pytest.fixture
def predictor(cuda: CudaRules, on_cuda: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> CodePredictor:
    """The stage, with graphs that are captured by the same code as on a GPU."""
    monkeypatch.setattr(graphs, "WARM_UPS", 0)
    return CodePredictor(on_cuda("code_predictor", CodePredictorOptions(dtype="bfloat16", max_batch=2)))


def seeded(predictor: CodePredictor, voices: int) -> None:
    """Send one `FrameSeed` for each of `voices` utterances; the first utterance is greedy."""
    hidden = torch.zeros(predictor._network.hidden_size, dtype=torch.bfloat16)
    for voice in range(voices):
        start = PredictorStart(SAMPLED if voice else Sampling())
        predictor.receive(Start(f"v{voice}", "talker_ar", "code_predictor", start))
        predictor.receive(Chunk(f"v{voice}", "talker_ar", "code_predictor", FrameSeed(Tensor.of(hidden), 3)))


def test_a_step_copies_as_often_for_many_voices_as_for_two(cuda: CudaRules, predictor: CodePredictor) -> None:
    seen = []
    for voices in (2, 6):  # two utterances are computed by a graph, and six without a graph
        predictor._network.max_batch = voices
        seeded(predictor, voices)
        cuda.forget()
        [feedback, *_] = [message for message in predictor.step() if isinstance(message, Chunk)]
        assert isinstance(feedback, Chunk)
        assert isinstance(feedback.body, FrameFeedback)
        assert feedback.body.embedding.dtype == "bfloat16"
        assert cuda.to_host == {"stages.code_predictor.stage:CodePredictor._compute": 2}  # codes and embeddings
        seen.append(dict(cuda.to_device))
        for voice in range(voices):
            predictor.abort(f"v{voice}")
    assert seen[0] == seen[1]
    assert seen[0] == {
        "stages.code_predictor.stage:CodePredictor._compute": 2,  # states and codes
        "stages.code_predictor.choice:CodeChoice.of": 2,  # a mask of the greedy rows, and the random numbers
        "stages.sampling_filters:Filters.of.<locals>.column": 4,
    }


def test_a_network_that_reads_cannot_be_captured(
    cuda: CudaRules, on_cuda: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "WARM_UPS", 0)
    attend = ResidualNetwork._attend

    def reading(network: Any, queries: torch.Tensor, *rest: Any) -> torch.Tensor:
        return attend(network, queries * queries.max().cpu(), *rest)

    monkeypatch.setattr(ResidualNetwork, "_attend", reading)
    with pytest.raises(HostRead, match="reading cannot be captured"):
        CodePredictor(on_cuda("code_predictor", CodePredictorOptions(dtype="bfloat16", max_batch=1)))


@torch.inference_mode()
def test_kernels_of_a_frame_at_the_sizes_of_the_30b_model(cuda: CudaRules, published: Qwen3OmniMoeConfig) -> None:
    kind = Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration
    with torch.device("cuda"):
        model = kind._from_config(published.talker_config.code_predictor_config, dtype=torch.bfloat16).eval()
        first = torch.zeros(published.talker_config.text_config.vocab_size, model.config.hidden_size).bfloat16()
    network = ResidualNetwork(model, first, 8)
    found = {}
    for kind, params, voices in (("greedy", Sampling(), 1), ("sampled", SAMPLED, 8)):
        rows = [(Draws(params), 0)] * voices
        choice = CodeChoice.of(rows, network.codebooks - 1, network.vocab, network.device)
        hidden = torch.zeros(voices, network.hidden_size, dtype=torch.bfloat16, device="cuda")
        cuda.forget()
        with cuda.captured():
            codes, embeddings = network.frames(hidden, torch.zeros_like(hidden[:, 0], dtype=torch.int64), choice)
        assert (codes.shape, codes.dtype) == ((voices, network.codebooks), torch.int64)
        assert (embeddings.shape, embeddings.dtype) == (hidden.shape, torch.bfloat16)
        found[kind] = cuda.kernels.total()
    assert found == KERNELS
