"""Replaces SGLang's kernels on a fake GPU. The replacements are counted, and return empty tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.cuda_rules import CudaRules


@contextmanager
def installed(rules: CudaRules) -> Iterator[None]:
    """Inside this context, `rules` checks and counts kernels of all kinds, and nothing is compiled."""
    from sglang.kernels.jit.utils.compile import cache, loader, ninja
    from sglang.srt.distributed import bootstrap
    from sglang.srt.layers import deep_gemm_wrapper, layernorm
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.model_executor.runner import decode_cuda_graph_runner
    from triton.runtime.jit import JITFunction

    def run_triton(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        rules.launch(kernel.__name__, arguments, options)

    def rmsnorm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, **options: Any) -> torch.Tensor:
        rules.launch("rmsnorm", x, weight, alike=True)
        _check_norm(x)
        return torch.empty_like(x)

    def fused_add_rmsnorm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float) -> None:
        rules.launch("fused_add_rmsnorm", x, residual, weight, alike=True)
        _check_norm(x)

    replaced: list[tuple[Any, str, Any]] = [
        (JITFunction, "run", run_triton),
        (layernorm, "rmsnorm", rmsnorm),
        (layernorm, "fused_add_rmsnorm", fused_add_rmsnorm),
        # Kernels that SGLang compiles at their first use write into their arguments, so the replacements need not
        # return results.
        (ninja, "generate", lambda spec: ""),
        (cache, "compute_build_key", lambda spec, build_file: ""),
        (loader, "_find_prebuilt", lambda spec, scope: Path(spec.module_name)),
        (loader, "_load", lambda library: _Compiled(rules, library.name)),
        # A group of a single rank never communicates, so a Gloo group can replace the NCCL group.
        (bootstrap, "_resolve_backend", lambda device: "gloo"),
        (deep_gemm_wrapper, "update_deep_gemm_config", lambda gpu: None),
        # The original function runs the garbage collector twice, which takes longer than all other work.
        (decode_cuda_graph_runner, "freeze_gc", lambda enabled: nullcontext()),
        # The original function reads the number of rows of each expert from the device.
        (ModelRunner, "maybe_init_expert_location_metadata", lambda runner: None),
    ]
    with ExitStack() as undo:
        for owner, name, value in replaced:
            undo.enter_context(mock.patch.object(owner, name, value))
        yield


class _Compiled:
    """Stands in for a library of compiled kernels."""

    def __init__(self, rules: CudaRules, library: str) -> None:
        self._rules = rules
        self._library = library

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self._rules.launch(name, arguments)


def _check_norm(x: torch.Tensor) -> None:
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise TypeError(f"there is no RMSNorm kernel of {x.dtype}")


def _empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *more: Any, **options: Any) -> list[torch.Tensor]:
    return [_empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype), _empty(1), _empty(1), _empty(1)]


# Results of those operations of `sgl_kernel` that return results. The other operations write into their arguments.
RESULTS: dict[str, Callable[..., Any]] = {
    "get_scheduler_metadata": lambda batch, *more, **options: _empty(4 * batch + 1),
    "fwd": _attention,
}
