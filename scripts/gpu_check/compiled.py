"""Lists the compiled kernels in the caches of libraries that compile kernels at their first use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_NAMED = 8


@dataclass(frozen=True)
class KernelCache:
    """The cache directory of one compiler, and the name pattern of its files. Each file contains one kernel."""

    compiler: str
    directory: Path
    pattern: str


def caches(environment: Mapping[str, str] = os.environ) -> list[KernelCache]:
    """The caches of all compilers. Environment variables may name their directories."""
    home = Path(environment.get("HOME", "~")).expanduser()
    own = home / ".cache"

    def place(variable: str, default: Path, *below: str) -> Path:
        return Path(environment.get(variable) or default, *below).expanduser()

    triton = place("TRITON_HOME", home) / ".triton" / "cache"
    return [
        KernelCache("SGLang", place("SGLANG_JIT_CACHE_DIR", own / "sglang" / "jit"), "**/*.so"),
        KernelCache("TVM FFI", place("TVM_FFI_CACHE_DIR", own / "tvm-ffi"), "**/*.so"),
        KernelCache("FlashInfer", place("FLASHINFER_WORKSPACE_BASE", home) / ".cache" / "flashinfer", "**/*.so"),
        KernelCache("Triton", place("TRITON_CACHE_DIR", triton), "*/*.cubin"),
    ]


def kernels(places: list[KernelCache]) -> dict[str, dict[Path, str]]:
    """For each compiler, the files that it has compiled, with the names of their kernels."""
    return {one.compiler: {path: path.stem for path in one.directory.glob(one.pattern)} for one in places}


def news(before: Mapping[str, Mapping[Path, str]], after: Mapping[str, Mapping[Path, str]]) -> str:
    """The new kernels in words; empty if there are no new kernels."""
    parts = []
    for compiler, files in after.items():
        new = sorted(name for path, name in files.items() if path not in before.get(compiler, {}))
        if new:
            names = list(dict.fromkeys(new))
            more = ", …" if len(names) > _NAMED else ""
            parts.append(f"{compiler} {len(new)} ({', '.join(names[:_NAMED])}{more})")
    return "; ".join(parts)
