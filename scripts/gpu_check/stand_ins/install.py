"""Makes SGLang use `torch_kernels` in place of its compiled kernels. Call the functions of this module before SGLang is
imported.

SGLang has two kinds of kernels: the kernels of the package `sgl_kernel`, which is built for one version of torch, and
the kernels that `load_jit` compiles at their first use.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from gpu_check.stand_ins import torch_kernels

_PACKAGE = "sgl_kernel"
_OF_PACKAGE = ("rmsnorm", "fused_add_rmsnorm", "silu_and_mul", "moe_sum_reduce", "moe_align_block_size")
_COMPILED = (
    "qknorm", "fused_add_rmsnorm", "run_activation", "run_activation_filtered", "run_activation_sorted_filtered",
    "store_cache", "clamp_position", "moe_align_block_size",
)  # fmt: skip


class Absent:
    """A kernel or constant that no torch function replaces. It can be imported but not used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *arguments: object, **options: object) -> Any:
        raise NotImplementedError(f"no torch function replaces {self._name}")


class _StandInFinder(MetaPathFinder, Loader):
    """Finds `sgl_kernel` and every module in it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == _PACKAGE else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module: Any = types.ModuleType(spec.name)
        module.__version__ = "0"

        def missing(name: str) -> Absent:
            if name.startswith("__"):
                raise AttributeError(name)
            return Absent(f"{spec.name}.{name}")

        module.__getattr__ = missing
        if spec.name == _PACKAGE:
            for name in _OF_PACKAGE:
                setattr(module, name, getattr(torch_kernels, name))
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: the module is complete."""


def package() -> None:
    """Replace `sgl_kernel` by a package of torch functions."""
    for name in [name for name in sys.modules if name.split(".")[0] == _PACKAGE]:
        del sys.modules[name]
    sys.meta_path.insert(0, _StandInFinder())


def compiled() -> None:
    """Make `load_jit` return torch functions, which need no compiler and are ready at once."""
    module = types.SimpleNamespace(**{name: getattr(torch_kernels, name) for name in _COMPILED})
    # The `rmsnorm` that `load_jit` compiles has other arguments than the `rmsnorm` of `sgl_kernel`.
    module.rmsnorm = lambda x, weight, out, eps: torch_kernels.rmsnorm(x, weight, eps, out)

    def load_jit(*marker: object, **sources: Any) -> Any:
        wanted = [name for name, _ in sources.get("cuda_wrappers") or ()]
        if not any(hasattr(module, name) for name in wanted):
            raise NotImplementedError(f"no torch function replaces any of these kernels: {', '.join(wanted)}")
        return module

    for name in ("compile.loader", "compile", ""):
        owner: Any = importlib.import_module(f"sglang.kernels.jit.utils.{name}".rstrip("."))
        owner.load_jit = load_jit
