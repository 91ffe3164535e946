"""Our options as SGLang server arguments."""

from __future__ import annotations

import json
from typing import Any

from omni_pipeline.errors import StartupError

# SGLang would give 40 % of the machine's memory to the KV cache of a CPU.
CPU_KV_TOKENS = 65536

# What the loop in `engine` relies on. `engine` options must not change these.
_OURS = {
    "skip_tokenizer_init": True,  # text is made in the decode stage
    "disable_overlap_schedule": True,  # a step's result is known when the step ends
    "watchdog_timeout": 1e9,  # the supervisor watches; SGLang's own thread sleeps half of this
}

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
) -> Any:
    """SGLang's `ServerArgs` for one engine.

    Raises:
        StartupError: `engine` names an argument that SGLang does not have, or one that is not the operator's to set.
    """
    from sglang.srt.server_args import ServerArgs, record_fields

    known = {field.name for field in record_fields(ServerArgs)}
    for name in engine:
        if name in _OURS or name in ("model_path", "device", "dtype"):
            raise StartupError(f"engine option {name!r} is set by omni-pipeline and cannot be changed")
        if name not in known:
            raise StartupError(f"engine option {name!r} is not an SGLang server argument")
    arguments: dict[str, Any] = {
        "model_path": model_path,
        "json_model_override_args": json.dumps({"architectures": [architecture]}),
        "dtype": dtype or ("float32" if device == "cpu" else "auto"),
        "max_running_requests": max_running_requests,
        "max_total_tokens": max_total_tokens or (CPU_KV_TOKENS if device == "cpu" else None),
        "log_level": "warning",
        **_OURS,
        **(_CPU if device == "cpu" else {"device": device}),
        **engine,
    }
    return ServerArgs(**arguments)
