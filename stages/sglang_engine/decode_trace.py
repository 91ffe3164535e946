"""Decodes on a CPU without running Python code: TorchScript's tracer records one run of SGLang's modules, and the
recording is then repeated.

A pass over a few rows consists of hundreds of small operations. The Python code around them, in SGLang and in torch,
takes longer than the operations. The recording is the counterpart on a CPU of the CUDA graphs that SGLang captures on a
GPU. One recording serves batches of all sizes and lengths, since no recorded operation depends on the batch size or the
lengths of the sequences.
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

# Decoding reads these attributes of SGLang's batch, of our attention backend, and of the KV cache.
_OF_BATCH = ("positions", "req_pool_indices", "out_cache_loc")
_OF_ATTENTION = ("places", "mask")
_OF_CACHE = ("k_buffer", "v_buffer")


class DecodeTrace:
    """Repeats a recording of a model's `decode_states`, which is made with the first batch.

    The product with the vocabulary's matrix is not recorded, because TorchScript cannot hold a packed matrix.

    Everything that changes from batch to batch is an input of the recording. The tables and the KV cache that decoding
    writes to are inputs too, because TorchScript merges equal constants.

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
        """As `OmniDecoder.decode`."""
        if getattr(self._attention, "places", None) is None:
            return self._model.decode(input_ids, batch)
        inputs = [input_ids]
        inputs += [getattr(batch, name) for name in _OF_BATCH]
        inputs += [getattr(self._attention, name) for name in _OF_ATTENTION]
        inputs += [getattr(self._model, name) for name in self._model.tables]
        for name in _OF_CACHE:
            inputs += getattr(self._cache, name)
        # With optimisation, TorchScript would profile the first runs and then compile again. For this recording, this
        # gains nothing.
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
            # Hide warnings about TorchScript's deprecation, and about checks whether a batch is empty, because a batch
            # is never empty.
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
