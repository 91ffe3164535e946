"""Decodes on a CPU without running Python code. TorchScript's tracer records one run of SGLang's modules, and later
steps repeat this recording.

A pass over a few rows consists of hundreds of small operations. The Python code around them, in SGLang and in torch,
takes longer than the operations. On a GPU, SGLang captures CUDA graphs for the same reason. One recording works for
batches of all sizes and lengths, because no recorded operation depends on the batch size or on the lengths of the
sequences.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

from stages.sglang_engine.cpu_kernels import PaddedDecodeAttention

# Names of the attributes that decoding reads. They are attributes of SGLang's batch, our attention backend, and the KV
# cache.
_OF_BATCH = ("positions", "req_pool_indices", "out_cache_loc")
_OF_ATTENTION = ("places", "mask")
_OF_CACHE = ("k_buffer", "v_buffer")


class DecodeTrace:
    """Records a model's `decode_states` at the first batch. Repeats this recording for every batch.

    The product with the vocabulary's matrix is not recorded, because TorchScript cannot contain a packed matrix.

    All data that changes from batch to batch is an input of the recording. The tables and the KV cache, to which
    decoding writes, are inputs too. If they were constants, TorchScript might merge two equal constants.

    Args:
        model: An `OmniDecoder` on the CPU that is not divided among ranks.
        attention: The model's attention backend. Batches that the backend does not pad are computed without the
            recording.
        cache: The model's KV cache.
    """

    def __init__(self, model: Any, attention: Any, cache: Any) -> None:
        self._model = model
        self._attention = attention
        self._cache = cache
        self._traced: Any = None

    def __call__(self, input_ids: torch.Tensor, batch: ForwardBatch) -> LogitsProcessorOutput:
        """Does the same as `OmniDecoder.decode`."""
        if not isinstance(self._attention, PaddedDecodeAttention):
            return self._model.decode(input_ids, batch)
        self._attention.lay_out(batch)
        if self._attention.places is None:
            return self._model.decode(input_ids, batch)
        inputs = [input_ids]
        inputs += [getattr(batch, name) for name in _OF_BATCH]
        inputs += [getattr(self._attention, name) for name in _OF_ATTENTION]
        inputs += [getattr(self._model, name) for name in self._model.tables]
        for name in _OF_CACHE:
            inputs += getattr(self._cache, name)
        # With optimisation, TorchScript would profile the first runs and then compile again. This would not make the
        # recording faster.
        with torch.jit.optimized_execution(False):
            if self._traced is None:
                self._traced = self._record(inputs, batch)
            states = self._traced(*inputs)
        return LogitsProcessorOutput(self._model.logits_processor.all_logits(states, self._model.lm_head))

    def _record(self, inputs: list[torch.Tensor], batch: ForwardBatch) -> Any:
        batch = copy.copy(batch)

        def run(*given: torch.Tensor) -> torch.Tensor:
            rest = iter(given)
            input_ids = next(rest)
            with contextlib.ExitStack() as undo:
                owners = (batch, _OF_BATCH), (self._attention, _OF_ATTENTION), (self._model, self._model.tables)
                for owner, names in owners:
                    for name in names:
                        undo.enter_context(_attribute(owner, name, next(rest)))
                for name in _OF_CACHE:
                    layers = [next(rest) for _ in getattr(self._cache, name)]
                    undo.enter_context(_attribute(self._cache, name, layers))
                return self._model.decode_states(input_ids, batch)

        self._model.requires_grad_(False)  # only weights without gradients can be constants
        with warnings.catch_warnings():
            # Hides warnings about TorchScript's deprecation. Also hides warnings about checks for empty batches,
            # because a batch is never empty.
            warnings.simplefilter("ignore")
            return torch.jit.trace(run, tuple(inputs), check_trace=False)


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Temporarily set an attribute to another value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
