"""Fakes the files of a driver: the device nodes, `nvidia-smi`, and the library `libcuda.so.1`."""

from __future__ import annotations

import ctypes
import glob
import os
import subprocess
from pathlib import Path
from typing import Any, cast

from fake_gpu.machine import Machine

_NODES = "/dev/nvidia"

# Packages with libraries that link to libcuda.
_LINKED = ("sgl_kernel", "flash_mla", "deep_gemm", "deep_ep")

# CUDA_ERROR_NO_DEVICE: every function of the fake driver returns this error.
_NO_DEVICE = 100

_SMI = """#!/bin/sh
case "$*" in
  *--query-gpu=memory.total*) printf '%s' '{memory}' ;;
  *--query-gpu=compute_cap*) printf '%s' '{capability}' ;;
  *) echo "the fake nvidia-smi does not know: $*" >&2; exit 2 ;;
esac
"""


def install(machine: Machine, directory: Path) -> None:
    """Make `glob.glob` list the device nodes of `machine`. Write an `nvidia-smi` that describes `machine` into
    `directory`, and put `directory` first on PATH.
    """
    real = glob.glob

    def look(pattern: Any, *arguments: Any, **options: Any) -> list[Any]:
        if str(pattern).startswith(_NODES):
            return [f"{_NODES}{index}" for index in range(len(machine.cards))]
        return real(pattern, *arguments, **options)

    glob.glob = cast(Any, look)
    script = directory / "nvidia-smi"
    script.write_text(
        _SMI.format(
            memory="".join(f"{card.memory_mib}\\n" for card in machine.cards).replace("\\n", "\n"),
            capability="".join(f"{card.capability[0]}.{card.capability[1]}\n" for card in machine.cards),
        )
    )
    script.chmod(0o755)
    os.environ["PATH"] = f"{directory}{os.pathsep}{os.environ.get('PATH', '')}"


def load_libcuda(packages: Path, directory: Path) -> None:
    """Compile a `libcuda.so.1` with the functions that the installed kernel libraries import, and load it.

    The dynamic linker then uses this library for every other library that needs libcuda, because the soname of this
    library matches.

    Args:
        packages: The site-packages directory.
        directory: Directory for the library.

    Raises:
        OSError: There is no C compiler.
        subprocess.CalledProcessError: The compiler fails.
    """
    source, library = directory / "libcuda.c", directory / "libcuda.so.1"
    names = wanted(packages)
    source.write_text("".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in names))
    link = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library)]
    subprocess.run(["cc", *link, str(source)], check=True, capture_output=True, text=True)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def wanted(packages: Path) -> list[str]:
    """Names of the CUDA driver's functions that the libraries in `_LINKED` import."""
    libraries = [str(path) for name in _LINKED for path in sorted((packages / name).rglob("*.so"))]
    listing = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--format=posix", *libraries],
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    symbols = {line.partition(" ")[0] for line in listing.splitlines()}
    # Names of driver functions have a capital letter after "cu"; names of other CUDA libraries do not, for example
    # cudaMalloc.
    return sorted(name for name in symbols if name.startswith("cu") and name[2:3].isupper() and name.isidentifier())
