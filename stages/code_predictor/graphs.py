"""Records the computation of whole frames once, and repeats this computation for later frames. Batches are padded to a
power of two or to the largest recorded size.

The computation of a frame has about a thousand small operations. On a GPU, the operations are recorded as a CUDA graph,
which needs only one launch. On a CPU, the operations are recorded as a TorchScript trace. A trace runs the
operations without Python in between, so a frame takes only half as long as without a trace.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stages.code_predictor.choice import CodeChoice
from stages.code_predictor.network import ResidualNetwork
from stages.sampling_filters import ALL, Filters

Work: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
Replay: TypeAlias = Callable[[], tuple[Tensor, Tensor]]
# A recorder: takes a function and its input tensors, and returns a function that repeats the work on the tensors'
# current content.
Record: TypeAlias = Callable[[Work, tuple[Tensor, ...]], Replay]

# Number of runs before a capture. In these runs, libraries choose their algorithms and allocate their workspaces.
WARM_UPS = 3

# The largest batch for which a trace is made. For larger batches, the arithmetic takes longer than the Python code, so
# a trace gains little. Making a trace takes a fifth of a second, and much longer on a busy machine. But a worker that
# replaces a lost worker must serve soon. So when a worker starts, it makes traces only for batches of up to
# `TRACED_BEFOREHAND` frames.
MOST_TRACED = 8
TRACED_BEFOREHAND = 1

# Number of candidates in a narrow recording. The candidates are the likeliest codes, and one of them is drawn. The
# number is small, because sorting the candidates takes longer than the rest of sampling. Few requests need more
# candidates.
NARROW = 64
GREEDY = 1


class Capture:
    """Makes CUDA graphs. They all use the same memory, so a graph's result is overwritten when another graph runs."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work, inputs: tuple[Tensor, ...]) -> Replay:
        """Capture `work` as a graph. Each call of the returned function runs the same kernels on the same memory, and
        returns the same tensors.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                work(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work(*inputs)

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return result

        return replay


def trace(work: Work, inputs: tuple[Tensor, ...]) -> Replay:
    """Trace `work` with TorchScript. Torch has deprecated TorchScript, but the replacements need a compiler and take
    minutes.
    """
    # With optimisation, TorchScript would profile the first runs and then compile again. For these traces, this takes
    # time and gains nothing.
    unoptimized = torch.jit.optimized_execution
    with warnings.catch_warnings(), unoptimized(False):
        warnings.simplefilter("ignore")  # warnings about the deprecation, and about sizes that are constants on purpose
        traced: Any = torch.jit.trace(work, inputs, check_trace=False)
        traced(*inputs)  # the first run prepares the trace for later runs

    def replay() -> tuple[Tensor, Tensor]:
        with unoptimized(False):
            return traced(*inputs)

    return replay


class _Recorded:
    """A recorded computation of a fixed number of frames (`rows`), and the memory from which the computation reads its
    inputs.

    There are two kinds of recorded computations. In the first kind, all frames are greedy. In the second kind, each
    frame has its own sampling parameters, and its codes are picked from at most the `widest` likeliest codes.
    """

    def __init__(self, network: ResidualNetwork, rows: int, widest: int, record: Record) -> None:
        device, residuals = network.device, network.codebooks - 1
        self._widest = widest
        self._hidden = torch.zeros(rows, network.hidden_size, dtype=network.dtype, device=device)
        self._first_codes = torch.zeros(rows, dtype=torch.int64, device=device)
        self._choice = CodeChoice(None, None, None)
        if widest != GREEDY:
            self._choice = CodeChoice(
                filters=Filters(
                    temperature=torch.ones(rows, 1, device=device),
                    top_k=torch.full((rows, 1), widest, device=device),
                    widest=widest,
                    top_p=torch.full((rows, 1), ALL, dtype=torch.float64, device=device),
                    min_p=torch.full((rows, 1), -torch.inf, device=device),
                ),
                greedy=torch.zeros(rows, dtype=torch.bool, device=device),
                uniforms=torch.zeros(rows, residuals, dtype=torch.float64, device=device),
            )
        inputs = (self._hidden, self._first_codes, *self._choice.tensors())
        self._run = record(
            lambda hidden, codes, *choice: network.frames(hidden, codes, self._choice.holding(*choice)), inputs
        )

    def __call__(self, hidden: Tensor, first_codes: Tensor, choice: CodeChoice) -> tuple[Tensor, Tensor]:
        batch = len(hidden)
        self._hidden[:batch].copy_(hidden)
        self._first_codes[:batch].copy_(first_codes)
        own, given = self._choice.filters, choice.filters
        if own is not None and given is not None:
            _fill(own.temperature, given.temperature, 1.0)
            _fill(own.top_k, given.top_k, self._widest)
            _fill(own.top_p, given.top_p, ALL)
            _fill(own.min_p, given.min_p, -torch.inf)
            _fill(self._choice.greedy, choice.greedy, False)
            _fill(self._choice.uniforms, choice.uniforms, 0.0)
        codes, embeddings = self._run()
        # Return copies, because the next run of this graph or of another graph overwrites the memory of the results.
        return codes[:batch].clone(), embeddings[:batch].clone()


class FrameGraphs:
    """Computes frames by replaying recordings. A recording is made at the start, when it is first needed, or by
    `record_next`.

    Args:
        network: Computes the frames.
        record: A `Capture`, or `trace`.
        largest: The largest recorded batch. The network itself computes larger batches.
        widest: The largest number of candidates in a recording. If a frame needs more candidates, the network itself
            computes the batch.
        beforehand: The largest batch that is recorded at the start. None means that all batch sizes are recorded at the
            start, as graphs on a GPU require.
    """

    def __init__(
        self, network: ResidualNetwork, record: Record, largest: int, widest: int, beforehand: int | None = None
    ) -> None:
        self._network = network
        self._record = record
        self._sizes = [1 << power for power in range((largest - 1).bit_length())]
        self._sizes.append(largest)
        self._widths = sorted({GREEDY, min(NARROW, widest), widest})
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        # Recordings that are still missing. `record_next` makes the last recording of this list. The smallest batches
        # are last in the list, because they will be needed most often.
        self._missing = [(rows, width) for rows in reversed(self._sizes) for width in self._widths]
        now = [key for key in self._missing if beforehand is None or key[0] <= beforehand]
        for key in now:  # largest batch first, so that all recordings can use the memory of the largest
            self._add(key)

    @property
    def complete(self) -> bool:
        """Whether all recordings have been made."""
        return not self._missing

    def record_next(self) -> None:
        """Make one of the missing recordings."""
        self._add(self._missing[-1])

    def frames(self, hidden: Tensor, first_codes: Tensor, choice: CodeChoice) -> tuple[Tensor, Tensor]:
        """Does the same as `ResidualNetwork.frames`."""
        if len(hidden) > self._sizes[-1] or choice.widest > self._widths[-1]:
            return self._network.frames(hidden, first_codes, choice)
        rows = next(size for size in self._sizes if size >= len(hidden))
        widest = next(width for width in self._widths if width >= choice.widest)
        if (rows, widest) in self._missing:
            self._add((rows, widest))
        return self._recorded[rows, widest](hidden, first_codes, choice)

    @torch.inference_mode()
    def _add(self, key: tuple[int, int]) -> None:
        self._missing.remove(key)
        self._recorded[key] = _Recorded(self._network, *key, self._record)


def _fill(target: Tensor | None, given: Tensor | None, neutral: float) -> None:
    """Copy `given` to the first rows of `target`. If `given` is None, fill `target` with `neutral`, a value that has
    no effect on the choice of codes.
    """
    if target is None:
        return
    if given is None:
        target.fill_(neutral)
    else:
        target[: len(given)].copy_(given)
