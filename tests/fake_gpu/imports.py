"""Reads from the sources which modules a worker with a GPU imports, including imports inside functions."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from stages.topology import QWEN3_OMNI

ROOT = Path(__file__).parents[2]

# Modules that SGLang imports only when it starts an engine with the settings that `test_arguments` and `test_models`
# expect.
_CHOSEN = (
    "sglang.srt.layers.attention.flashattention_backend",
    "sglang.srt.layers.attention.triton_backend",
    "sglang.srt.layers.moe.moe_runner.marlin",
    "sglang.srt.layers.moe.moe_runner.triton",
    "sglang.srt.layers.moe.cutlass_moe",
    "sglang.srt.layers.quantization.fp8_utils",
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
    "sglang.srt.model_executor.runner_backend.full_cuda_graph_backend",
    "sgl_kernel.flash_attn",
)


@functools.cache
def modules() -> tuple[str, ...]:
    """Names of all modules that a worker with a GPU imports. The modules of the graph's accelerated stages come first,
    in the order in which a worker imports these modules.
    """
    accelerated = [spec for spec in QWEN3_OMNI.stages if spec.accelerated]
    first = [*(name for spec in accelerated for name in spec.preload), "omni_pipeline.worker.process"]
    stages = [spec.factory.partition(":")[0] for spec in accelerated]
    return tuple(dict.fromkeys((*first, *stages, *_own(), *(module for module, _ in names()), *_CHOSEN)))


@functools.cache
def names() -> tuple[tuple[str, str], ...]:
    """All imports from other packages in `stages`, as pairs of a module and a name in that module. The name is empty if
    the module itself is imported.
    """
    found: list[tuple[str, str]] = []
    for path in sorted((ROOT / "stages").rglob("*.py")):
        found += _imported(ast.parse(path.read_text()))
    return tuple(dict.fromkeys(found))


def _own() -> Iterator[str]:
    """The modules of `stages`."""
    for path in sorted((ROOT / "stages").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.module, alias.name) for alias in node.names)
