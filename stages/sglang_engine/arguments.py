"""Translates our options into SGLang server arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omni_pipeline import gpus
from omni_pipeline.errors import StartupError, suggestion
from stages.checkpoint.memory_needs import CPU_KV_TOKENS

# The loop in the module `engine` relies on these values. So an operator cannot change these arguments with a stage's
# option `engine`.
_OURS = {
    "skip_tokenizer_init": True,  # the decode stage makes the text
    "disable_overlap_schedule": True,  # without overlap, a step's result is known when the step ends
    # The number is in seconds. SGLang's watchdog sleeps for half of this time, so it never acts. The supervisor detects
    # hangs instead.
    "watchdog_timeout": 1e9,
    # a prefill graph would bypass the models' `fill`, which adds media, deepstack and positions
    "disable_prefill_cuda_graph": True,
}

# SGLang arguments that an operator must set through a setting of this server. Each comes with the name of the setting.
_ELSEWHERE = {
    "model_path": "--model-path",
    "device": "the stage's device",
    "dtype": "the stage's options.dtype",
    "tp_size": "the stage's tp_size",
    "mem_fraction_static": "the stage's memory or options.mem_fraction_static",
    "max_total_tokens": "the stage's options.max_total_tokens",
    "max_running_requests": "the stage's options.max_running_requests",
}

# SGLang may use this share of the GPU's memory in addition to the planned memory. Without this addition, rounding could
# make the KV cache smaller than planned.
_SLACK = 0.02

# Largest share of the free memory that SGLang may use.
_MOST = 0.98

# SGLang's attention backends that support float32 on a GPU.
_FLOAT32_ATTENTION = ("triton", "torch_native")

_CPU = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "disable_cuda_graph": True,
}


def server_arguments(
    *,
    model_path: str,
    architecture: str,
    device: str,
    dtype: str | None,
    max_total_tokens: int | None,
    max_running_requests: int,
    engine: dict[str, Any],
    tp_size: int = 1,
    static_bytes: int | None = None,
    overrides: dict[str, Any] | None = None,
) -> Any:
    """SGLang's `ServerArgs` for one engine.

    Args:
        overrides: Changes to the checkpoint's config (`engine_config.overrides`).

    Raises:
        StartupError: `engine` has an argument that SGLang does not have, that an operator must not set, or whose value
            does not work with the data type.
    """
    from sglang.srt.server_args import ServerArgs, record_fields

    known = {field.name for field in record_fields(ServerArgs)}
    for name in engine:
        if name in _OURS:
            raise StartupError(f"engine option {name!r} is set by omni-pipeline and cannot be changed")
        if name in _ELSEWHERE:
            raise StartupError(f"engine option {name!r} cannot be set here; use {_ELSEWHERE[name]} instead")
        if name not in known:
            raise StartupError(f"engine option {name!r} is not an SGLang server argument; {suggestion(name, known)}")
    config = {} if device == "cpu" else json.loads((Path(model_path) / "config.json").read_text())
    dtype = dtype or ("float32" if device == "cpu" else _stored_dtype(config))
    arguments: dict[str, Any] = {
        "model_path": model_path,
        "json_model_override_args": json.dumps({"architectures": [architecture], **(overrides or {})}),
        "dtype": dtype,
        "max_running_requests": max_running_requests,
        "max_total_tokens": max_total_tokens or (CPU_KV_TOKENS if device == "cpu" else None),
        "tp_size": tp_size,
        "log_level": "warning",
        **({} if device == "cpu" else _for_fp8(overrides or {})),
        **(_for_float32(overrides or {}, engine) if device != "cpu" and dtype == "float32" else {}),
        **_OURS,
        **(_CPU if device == "cpu" else {"device": device}),
        **engine,
    }
    if device != "cpu" and static_bytes is not None:
        bounded = max_total_tokens is not None
        arguments["mem_fraction_static"] = static_fraction(static_bytes, *gpus.least_free(), bounded=bounded)
    return ServerArgs(**arguments)


def moe_backend(quantization: dict[str, Any], capability: tuple[int, int]) -> str | None:
    """SGLang's ``moe_runner_backend`` for a checkpoint's ``quantization_config``; None leaves the choice to SGLang.

    Experts with FP8 weights in blocks use CUTLASS on the GPUs that the CUTLASS kernels support: Hopper and Blackwell.

    Args:
        capability: The GPU's compute capability.
    """
    blocks = quantization.get("quant_method") == "fp8" and quantization.get("weight_block_size") is not None
    return "cutlass" if blocks and capability[0] in (9, 10, 12) else None


def _stored_dtype(config: dict[str, Any]) -> str:
    """The data type of the checkpoint. SGLang's ``auto`` would turn float32 into float16."""
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")


def _for_float32(overrides: dict[str, Any], engine: dict[str, Any]) -> dict[str, Any]:
    """Arguments for float32 on a GPU. Some of SGLang's kernels do not support float32. With these arguments, SGLang
    uses attention kernels that support float32. For other operations, `float32_forms` replaces the kernels.
    """
    quantization = overrides.get("quantization_config")
    if quantization:
        raise StartupError(
            f"options.dtype: float32 on a GPU does not work with this checkpoint, because its weights are quantised "
            f"({quantization.get('quant_method')}) and are multiplied in bfloat16. Leave dtype out."
        )
    for name in ("attention_backend", "prefill_attention_backend", "decode_attention_backend"):
        if engine.get(name) not in (None, *_FLOAT32_ATTENTION):
            raise StartupError(
                f"engine option {name!r}: {engine[name]} does not support float32, the data type of the stage. Use "
                f"{' or '.join(_FLOAT32_ATTENTION)}, or set options.dtype to bfloat16."
            )
    if engine.get("moe_runner_backend") not in (None, "auto", "triton"):
        raise StartupError(
            f"engine option 'moe_runner_backend': {engine['moe_runner_backend']} does not support float32, the "
            "data type of the stage. Leave moe_runner_backend out, or set options.dtype to bfloat16."
        )
    return {"attention_backend": _FLOAT32_ATTENTION[0]}


def _for_fp8(overrides: dict[str, Any]) -> dict[str, Any]:
    # The capability comes from the module `gpus`. If this code asked torch for the capability, every rank would create
    # a CUDA context on the first GPU.
    backend = moe_backend(overrides.get("quantization_config") or {}, gpus.capability(gpus.detect()[0]))
    return {} if backend is None else {"moe_runner_backend": backend}


def static_fraction(static: int, free: int, total: int, *, bounded: bool) -> float:
    """The value of SGLang's ``mem_fraction_static`` for a GPU. `static` is the number of bytes for weights and KV
    cache.

    SGLang's KV cache gets the memory that is free after the weights are loaded, minus (1 - fraction) times the memory
    that was free before they were loaded. So the fraction is a share of the memory that is *free when the engine
    starts*, not of the whole GPU. If other processes already use the GPU, the same number of bytes is a larger
    fraction.

    If a planned number of tokens already limits the cache, the fraction is nearly 1. A smaller fraction could only make
    the cache smaller than planned: SGLang subtracts from the cache all memory that other processes or CUDA graphs
    allocate in the meantime.

    Args:
        free, total: Free bytes and all bytes of the GPU at this moment.
        bounded: Whether the cache has a planned number of tokens.

    Raises:
        StartupError: The GPU has less free memory than planned.
    """
    if static > free:
        raise StartupError(
            f"{static / 2**30:.1f} GiB are planned for weights and KV cache, but only {free / 2**30:.1f} of the GPU's "
            f"{total / 2**30:.1f} GiB are free: another program uses the GPU, or the planned memory is too large"
        )
    return _MOST if bounded else min(_MOST, (static + _SLACK * total) / free)
