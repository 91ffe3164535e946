"""Runs SGLang's decode graphs on a CPU. SGLang's code for buffers, padding, capture and replay is used unchanged. Only
the CUDA graphs are replaced, by `stages.cpu_graphs`.

The engine uses this module while `cuda_habits.enabled()` is true.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from sglang.srt.arg_groups.cuda_graph_hook import generate_decode_cuda_graph_batch_sizes
from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase
from sglang.srt.model_executor.graph_shared_output import GraphSharedOutput
from sglang.srt.model_executor.model_runner_components import cuda_graph_setup
from sglang.srt.model_executor.runner import decode_cuda_graph_runner
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.model_executor.runner_backend.base_cuda_graph_backend import BaseCudaGraphBackend
from sglang.srt.runtime_context import get_exec, get_parallel

from stages import cuda_habits
from stages.cpu_graphs import GraphPool

# the same number of warm-up runs as in SGLang's own backend
_WARM_UPS = 2


class CpuGraphBackend(BaseCudaGraphBackend):
    """Records and replays the work that SGLang's runner passes to it, with one graph for each batch size.

    Args:
        runner: SGLang's runner.
        options: Options for graphs on a GPU, which are ignored.
    """

    def __init__(self, runner: Any, **options: Any) -> None:
        self._pool = GraphPool()
        self._replays: dict[Any, Callable[[], Any]] = {}

    @contextlib.contextmanager
    def capture_session(self, stream: Any) -> Iterator[None]:
        yield

    def capture_one(
        self,
        shape_key: Any,
        forward_fn: Callable[[], Any],
        capture_inputs: Any = None,
        post_warmup_hook: Callable[[], None] | None = None,
    ) -> None:
        for _ in range(_WARM_UPS):
            forward_fn()
            if post_warmup_hook is not None:
                post_warmup_hook()
        self._replays[shape_key] = self._pool.record(forward_fn)

    def can_run(self, forward_batch: Any, shape_key: Any) -> bool:
        return shape_key in self._replays

    @contextlib.contextmanager
    def replay_session(self) -> Iterator[None]:
        yield

    def replay(self, shape_key: Any, static_forward_batch: Any, **kwargs: Any) -> Any:
        return self._replays[shape_key]()

    def cleanup(self) -> None:
        self._replays.clear()


class CpuGraphRunner(DecodeCudaGraphRunner):
    """SGLang's runner without stream events, which a CPU does not have."""

    def _record_in_graph_metadata_prep_done(self) -> None:
        """Do nothing: no code waits for the event."""


def install() -> None:
    """Make engines on a CPU capture decode steps in the same cases as engines on a GPU, if `cuda_habits.enabled()`."""
    original = cuda_graph_setup.capture_decode_graph

    def capture_decode_graph(*, model_runner: Any) -> Any:
        single = get_parallel().tp_size == 1  # a recording cannot contain communication between ranks
        return _capture(model_runner) if single and cuda_habits.enabled() else original(model_runner=model_runner)

    cuda_graph_setup.capture_decode_graph = capture_decode_graph
    decode_cuda_graph_runner.graph_capture = _no_stream


def _capture(model_runner: Any) -> Any:
    graph = get_exec().graph
    # SGLang turns graphs off for torch-native attention, and uses other batch sizes for its own "CPU graphs".
    sizes = generate_decode_cuda_graph_batch_sizes(model_runner.server_args, model_runner.max_running_requests)
    config = with_phase(graph.cuda_graph_config, Phase.DECODE, backend=Backend.FULL, bs=sizes, max_bs=sizes[-1])
    with graph.override(cuda_graph_config=config):
        model_runner.graph_shared_output = GraphSharedOutput.create_for_model_runner(model_runner)
        runner = CpuGraphRunner(model_runner)
    return cuda_graph_setup.GraphCapture(runner=runner, memory_phase="decode", memory_usage_gb=0.0, capture_time=0.0)


@contextlib.contextmanager
def _no_stream(stream: Any = None) -> Iterator[SimpleNamespace]:
    yield SimpleNamespace(stream=None)
