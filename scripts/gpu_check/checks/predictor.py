"""Checks that the code predictor's CUDA graphs give the same frames as its network without graphs, and that replays of
graphs allocate no lasting memory. Also measures the time with and without graphs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec
import torch

from gpu_check.running.finding import Finding
from gpu_check.running.measure import held_bytes, mib, times
from gpu_check.running.random_parts import RandomModel
from gpu_check.running.setup import Setup
from stages.checkpoint import memory_needs
from stages.code_predictor.choice import CodeChoice, Draws
from stages.code_predictor.graphs import FrameGraphs
from stages.code_predictor.network import ResidualNetwork
from stages.code_predictor.stage import frame_graphs, load_network
from stages.messages import Sampling
from stages.options import CodePredictorOptions

Compute: TypeAlias = Callable[[torch.Tensor, torch.Tensor, CodeChoice], tuple[torch.Tensor, torch.Tensor]]

GREEDY = Sampling()
SAMPLED = Sampling(temperature=1.0, top_k=50, top_p=0.8)
WIDE = Sampling(temperature=1.2, min_p=0.02)
BATCHES = (1, 2, 3, 5, 8, 13, 32)
TIMED = (1, 8, 32)
REPLAYS = 1000

_MAY_GROW = 8 * 1024**2
# On a CPU, memory comes from the heap and not from a fixed pool, so the measured growth after some replays is inexact.
_MAY_GROW_ON_CPU = 64 * 1024**2


def run(setup: Setup) -> Iterator[Finding]:
    largest = 4 if setup.small else 32
    model = RandomModel(setup.directory, setup.device, small=setup.small)
    options = CodePredictorOptions(max_batch=largest)
    network = load_network(model.path, setup.device, options)
    before, began = held_bytes(setup.device), time.perf_counter()
    graphs = frame_graphs(network, setup.device)
    while not graphs.complete:
        graphs.record_next()
    seconds = round(time.perf_counter() - began, 2)
    taken = held_bytes(setup.device) - before
    planned = memory_needs.predictor(model.situation(options)).graphs
    figures: dict[str, float] = {"seconds": seconds, "mib": mib(taken), "planned_mib": mib(planned)}
    yield Finding("predictor: capture", setup.device == "cpu" or taken <= planned, figures)
    yield _equality(setup, network, graphs, largest)
    yield _growth(setup, network, graphs, largest)
    for way, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
        figures = {}
        for batch in TIMED:
            if batch <= largest and setup.in_time:
                work = FrameBatch(network, [sampling] * batch)
                for name, compute in (("graph", graphs.frames), ("eager", network.frames)):
                    took = times(functools.partial(work.codes, compute), setup.device, setup.runs(30))
                    figures[f"{name}_{batch}_ms"] = took.steady
        yield Finding(f"predictor: ms per frame, {way}", bool(figures), figures)


class FrameBatch:
    """One frame for each of several utterances, which have the same sampling parameters. Each utterance has its own
    seed and state.

    Args:
        rows: Number of utterances that are used, beginning with the first utterance; None means all.
    """

    def __init__(self, network: ResidualNetwork, ways: list[Sampling], rows: int | None = None) -> None:
        generator = torch.Generator().manual_seed(len(ways))
        shape = len(ways), network.hidden_size
        hidden = torch.randn(shape, generator=generator).to(network.device, network.dtype)
        codes = torch.randint(0, network.vocab, shape[:1], generator=generator).to(network.device)
        draws = [(Draws(_seeded(way, row)), row) for row, way in enumerate(ways)]
        self._hidden, self._codes = hidden[:rows], codes[:rows]
        self._choice = CodeChoice.of(draws[:rows], network.codebooks - 1, network.vocab, network.device)

    @torch.inference_mode()
    def codes(self, compute: Compute) -> torch.Tensor:
        """The codes of the frames, computed by `ResidualNetwork.frames` or `FrameGraphs.frames`."""
        return compute(self._hidden, self._codes, self._choice)[0]


def _seeded(way: Sampling, row: int) -> Sampling:
    return msgspec.structs.replace(way, seed=row)


def _equality(setup: Setup, network: ResidualNetwork, graphs: FrameGraphs, largest: int) -> Finding:
    """Compare the codes from the graphs with the codes from the network. The graphs pad a batch to a larger size. The
    network computes a batch of this larger size too, so that it runs the same kernels as the graphs.
    """
    different, compared, at_own_size = 0, 0, 0
    for rows in (batch for batch in BATCHES if batch <= largest):
        padded = min(largest, 1 << (rows - 1).bit_length())
        for way in (GREEDY, SAMPLED, WIDE):
            whole, part = FrameBatch(network, [way] * padded), FrameBatch(network, [way] * padded, rows)
            recorded = part.codes(graphs.frames)
            different += int((recorded != whole.codes(network.frames)[:rows]).any(1).sum())
            at_own_size += int((recorded != part.codes(network.frames)).any(1).sum())
            compared += rows
    # At its own size, without padding, a batch may use other kernels, which round differently. So the comparison at
    # this size is reported but not judged.
    figures = {"frames": compared, "different": different, "different_at_own_size": at_own_size}
    return Finding("predictor: graphs equal eager", not different and compared > 0, figures)


def _growth(setup: Setup, network: ResidualNetwork, graphs: FrameGraphs, largest: int) -> Finding:
    work = [FrameBatch(network, [way] * rows) for way in (GREEDY, SAMPLED, WIDE) for rows in (1, largest)]
    replays = 60 if setup.small else REPLAYS

    def replay(number: int) -> None:
        for index in range(number):
            work[index % len(work)].codes(graphs.frames)

    replay(len(work) * 2)
    before = held_bytes(setup.device)
    replay(replays)
    grown = held_bytes(setup.device) - before
    limit = _MAY_GROW_ON_CPU if setup.device == "cpu" else _MAY_GROW
    return Finding("predictor: replays hold no memory", grown <= limit, {"replays": replays, "grown_mib": mib(grown)})
