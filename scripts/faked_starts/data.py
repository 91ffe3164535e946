"""Defines the data that is sent to the process on fake GPUs, and the results that this process sends back."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

STAGES = ("thinker", "talker_ar")
"""The stages that have an engine."""


class PlannedEngine(Struct, frozen=True):
    """A stage with an engine, and the values that the stage's worker gets when it starts.

    Attributes:
        options: The stage's options as plain values.
        stages: Names of all stages of the deployment.
        ranks: Number of processes that share the model.
        static: Bytes of each GPU for weights and KV cache.
    """

    stage: str
    model_path: str
    options: dict[str, Any]
    stages: tuple[str, ...]
    ranks: int = 1
    static: int | None = None


class Arguments(Struct, frozen=True):
    """The part of SGLang's resolved arguments that decides what runs on the GPU.

    Attributes:
        decode_graphs: Batch sizes for which a decode step is captured as a CUDA graph.
        dtype, quantization: Data type and quantisation that SGLang finds in the checkpoint.
    """

    attention_backend: str
    page_size: int
    chunked_prefill_size: int
    decode_graphs: tuple[int, ...]
    prefill_graphs: bool
    moe_runner_backend: str
    kv_cache_dtype: str
    sampling_backend: str
    max_total_tokens: int
    max_running_requests: int
    mem_fraction_static: float
    tp_size: int
    disable_overlap_schedule: bool
    disable_radix_cache: bool
    dtype: str
    quantization: str | None
    context_length: int


class Built(Struct, frozen=True):
    """A model that was built on ``meta``.

    Attributes:
        devices: For each device, the names of the parameters and buffers on it.
        shapes, dtypes: Shapes and data types of the first layer's parameters. The keys are the parameters' names within
            the layer.
        linear, experts: Classes that compute the joined projection and the experts of the first layer.
        moe_runner: The runner of the experts; None if the class in `experts` runs them itself.
        kv_cache_dtype: Data type of the model's KV cache.
        forms: For each class of operation with several implementations, the name of the chosen function.
    """

    devices: dict[str, list[str]]
    shapes: dict[str, list[int]]
    dtypes: dict[str, str]
    linear: str
    experts: str
    moe_runner: str | None
    kv_cache_dtype: str
    forms: dict[str, list[str]]
