"""What goes into the process under fake GPUs, and what comes out of it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

STAGES = ("thinker", "talker_ar")
"""Those with an engine."""


class Engine(Struct, frozen=True):
    """A stage with an engine, as its worker is told to start it.

    Attributes:
        options: The stage's options as plain values.
        stages: Names of all stages of the deployment.
        ranks: Processes that share the model.
        static: Bytes of each GPU for weights and KV cache.
    """

    stage: str
    model_path: str
    options: dict[str, Any]
    stages: tuple[str, ...]
    ranks: int = 1
    static: int | None = None


class Arguments(Struct, frozen=True):
    """Of SGLang's resolved arguments, those that decide what runs on the GPU.

    Attributes:
        decode_graphs: Batch sizes of which a decode step is captured.
        dtype, quantization: As SGLang understands the checkpoint.
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
        devices: Names of parameters and buffers by the device they are on.
        shapes, dtypes: Of the parameters of the first layer, by name in the layer.
        linear, experts: Classes that compute the joined projection and the experts of the first layer.
        moe_runner: Who runs the experts; None where the class above does it itself.
        kv_cache_dtype: Of the KV cache that goes with it.
        forms: Names of the functions that operations of several forms run, by the operation's class.
    """

    devices: dict[str, list[str]]
    shapes: dict[str, list[int]]
    dtypes: dict[str, str]
    linear: str
    experts: str
    moe_runner: str | None
    kv_cache_dtype: str
    forms: dict[str, list[str]]
