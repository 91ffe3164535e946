"""Frames from recorded graphs equal the frames that the network computes without graphs. Stand-ins replace CUDA graphs,
because CUDA graphs need a GPU.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from stages.code_predictor.choice import CodeChoice, Draws
from stages.code_predictor.graphs import FrameGraphs, trace
from stages.code_predictor.network import ResidualNetwork
from stages.code_predictor.stage import load_network
from stages.cpu_graphs import GraphPool
from stages.messages import Sampling

WAYS = [
    Sampling(),
    Sampling(temperature=1.0, top_k=50, top_p=0.8, seed=1),
    Sampling(temperature=2.0, seed=2),
    Sampling(temperature=0.7, min_p=0.1, seed=3),
    Sampling(temperature=1.0, top_k=5, min_p=0.2, seed=4),
]


@dataclasses.dataclass
class Recording:
    """A graph recorder that makes no graph. A replay calls `work` again on the recorded inputs."""

    made: int = 0

    def __call__(self, work: Any, inputs: Any) -> Any:
        self.made += 1
        return lambda: work(*inputs)


@pytest.fixture(scope="module")
def network(voice_context: Any) -> ResidualNetwork:
    context = voice_context("nano", "code_predictor", max_batch=6)
    return load_network(context.model_path, "cpu", context.options)


@pytest.fixture(scope="module", params=["repeated", "traced", "on the same memory"])
def graphs(request: Any, network: ResidualNetwork) -> FrameGraphs:
    records = {"repeated": Recording(), "traced": trace, "on the same memory": GraphPool().record}
    return FrameGraphs(network, records[request.param], 5, network.vocab)


@pytest.mark.parametrize("kind", ["greedy", "narrow", "wide"])
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6])
@torch.inference_mode()
def test_neither_recording_nor_padding_changes_a_frame(
    batch: int, kind: str, network: ResidualNetwork, graphs: FrameGraphs
) -> None:
    """Every batch runs twice with different inputs, so the test fails if values of the first run are left."""
    picking = {"greedy": [Sampling()], "narrow": [way for way in WAYS if way.top_k], "wide": WAYS}[kind]
    for turn in range(2):
        hidden = torch.randn(batch, network.hidden_size, generator=torch.Generator().manual_seed(turn))
        codes = torch.arange(batch) + turn
        ways = [picking[(row + turn) % len(picking)] for row in range(batch)]
        rows = [(Draws(way), turn) for way in ways]
        choice = CodeChoice.of(rows, network.codebooks - 1, network.vocab, network.device)
        got = graphs.frames(hidden, codes, choice)
        expected = network.frames(hidden, codes, choice)
        assert torch.equal(got[0], expected[0])
        torch.testing.assert_close(got[1], expected[1], rtol=0, atol=1e-6)


def test_work_is_recorded_for_every_power_of_two_and_the_largest_batch(network: ResidualNetwork) -> None:
    recording = Recording()
    FrameGraphs(network, recording, 6, network.vocab)
    assert recording.made == len(("greedy", "narrow", "wide")) * len((1, 2, 4, 6))


@torch.inference_mode()
def test_wider_choices_than_were_recorded_are_computed(network: ResidualNetwork) -> None:
    recording = Recording()
    graphs = FrameGraphs(network, recording, 1, 4)
    assert recording.made == len(("greedy", "narrow"))
    hidden, codes = torch.ones(1, network.hidden_size), torch.tensor([1])
    for way in WAYS:
        choice = CodeChoice.of([(Draws(way), 0)], network.codebooks - 1, network.vocab, network.device)
        assert torch.equal(graphs.frames(hidden, codes, choice)[0], network.frames(hidden, codes, choice)[0])


@torch.inference_mode()
def test_larger_batches_are_recorded_when_they_are_first_wanted(network: ResidualNetwork) -> None:
    recording = Recording()
    graphs = FrameGraphs(network, recording, 6, 4, beforehand=1)
    assert recording.made == 2  # the graph for greedy choice, and the graph for sampling among few codes
    greedy = CodeChoice(None, None, None)
    for batch in (1, 2, 2, 1):
        graphs.frames(torch.zeros(batch, network.hidden_size), torch.zeros(batch, dtype=torch.int64), greedy)
    assert recording.made == 3
    while not graphs.complete:
        graphs.record_next()
    assert recording.made == 2 * len((1, 2, 4, 6))


@torch.inference_mode()
def test_results_outlive_the_next_frame(network: ResidualNetwork, graphs: FrameGraphs) -> None:
    greedy = CodeChoice(None, None, None)
    first, _ = graphs.frames(torch.ones(1, network.hidden_size), torch.tensor([1]), greedy)
    before = first.clone()
    graphs.frames(-torch.ones(1, network.hidden_size), torch.tensor([5]), greedy)
    assert torch.equal(first, before)
