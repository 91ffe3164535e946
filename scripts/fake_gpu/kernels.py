"""Loads SGLang's kernel library. If that fails, installs a package of functions that raise an error when called."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

from fake_gpu import driver

_PACKAGE = "sgl_kernel"


def load(packages: Path, directory: Path) -> str:
    """Import `sgl_kernel`.

    Args:
        packages, directory: As for `driver.load_libcuda`.

    Returns:
        ``real``, or the reason why the library did not load. In that case a stub replaces it.
    """
    try:
        driver.load_libcuda(packages, directory)
        import sgl_kernel  # noqa: F401
    except Exception as error:
        stand_in()
        return f"{type(error).__name__}: {error}"
    return "real"


def stand_in() -> None:
    """Replace `sgl_kernel` and all its modules by stubs, whose functions raise an error when they are called."""
    for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != _PACKAGE:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__version__"] = "0"


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Refusing(f"{self.__name__}.{name}")


class _Refusing:
    """A function or constant of the package that can be imported but not used."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Refusing(f"{self._path}.{name}")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError(f"{self._path} is a stub: there is no GPU")
