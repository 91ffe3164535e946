"""Finds the tools that compile GPU kernels at first use, and reports missing tools before a worker starts.

Libraries contain many of their kernels as source code, and compile each kernel when the machine first needs this
kernel. Libraries look for ``ninja`` and a C++ compiler on ``PATH``, and for a CUDA toolkit in ``CUDA_HOME``. Without
these tools, the first request fails, or the start fails after minutes of loading. So this module sets ``PATH`` and
``CUDA_HOME`` for workers on GPUs, and reports missing tools before the start.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from omni_pipeline.contract.plan import WorkerPlan
from omni_pipeline.errors import StartupError
from omni_pipeline.kernels import cuda_toolkit

_GCC = "install it (Debian, Ubuntu: apt install g++; Fedora, RHEL: dnf install gcc-c++)"


class Toolchain(Struct, frozen=True):
    """The tools that compile kernels.

    Attributes:
        path: Directories to search before the directories of ``PATH``.
        toolkit: The CUDA toolkit that is installed, if any.
        packages: If no toolkit is installed, the directories of Python packages from which a toolkit can be made.
        missing: A message for each missing tool, with the purpose of the tool and how to install it.
    """

    path: tuple[str, ...]
    toolkit: Path | None
    packages: tuple[Path, ...]
    missing: tuple[str, ...]


def find(environment: Mapping[str, str]) -> Toolchain:
    """The tools that a worker with these environment variables would find."""
    path = tuple(_own_directories())
    search = os.pathsep.join([*path, environment.get("PATH", "")])
    named = next((environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)), None)
    toolkit = Path(named) if named is not None else cuda_toolkit.installed(environment)
    packages = tuple(cuda_toolkit.packages()) if toolkit is None else ()
    missing: list[str] = []
    cxx, gcc = environment.get("CXX", "c++"), environment.get("NVCC_CCBIN", "gcc")
    if not _on_path(cxx, search):
        missing.append(f"{cxx}: the C++ compiler for kernels; {_GCC}, or set CXX to another compiler")
    if not _on_path(gcc, search):
        missing.append(f"{gcc}: the compiler that nvcc passes code to; {_GCC}, or set NVCC_CCBIN to another compiler")
    if not _on_path("ninja", search):
        missing.append("ninja: runs the compilers; pip install ninja into this environment")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        missing.append("Python.h: Triton builds its kernels as Python modules; install Python's headers (python3-dev)")
    if named is not None and (parts := cuda_toolkit.lacking(Path(named))):
        missing.append(
            f"nvcc: CUDA_HOME is {named}, which lacks {', '.join(parts)}; set the variable to a "
            "complete CUDA toolkit, or unset the variable to use a toolkit that is made from NVIDIA's Python packages"
        )
    elif toolkit is None and not packages:
        missing.append(
            "nvcc: the CUDA compiler, with CUDA's headers and runtime; install a CUDA toolkit and set CUDA_HOME to it, "
            "or pip install nvidia-cuda-nvcc nvidia-cuda-cccl nvidia-cuda-runtime into this environment"
        )
    return Toolchain(path, toolkit, packages, tuple(missing))


def prepared(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker on a GPU. The result has the toolchain on ``PATH``, and sets ``CUDA_HOME`` if
    `environment` does not set it.
    """
    found = find(environment)
    toolkit = found.toolkit
    if toolkit is None and found.packages:
        toolkit = cuda_toolkit.assemble(found.packages, environment)
    path = os.pathsep.join([*found.path, *filter(None, [environment.get("PATH")])])
    home = {} if toolkit is None else {"CUDA_HOME": str(toolkit)}
    return {**environment, "PATH": path, **home}


def missing(workers: Iterable[WorkerPlan]) -> tuple[str, ...]:
    """One message for each tool that workers on GPUs would not find."""
    environments = [worker.environment for worker in workers if worker.gpus]
    return tuple(dict.fromkeys(line for own in environments for line in find({**os.environ, **own}).missing))


def check(workers: Iterable[WorkerPlan]) -> None:
    """Raise StartupError if workers on GPUs could not compile their kernels on this machine."""
    lines = missing(workers)
    if lines:
        raise StartupError(describe(lines))


def notes(workers: Iterable[WorkerPlan]) -> tuple[str, ...]:
    """The message of `check` as a remark instead of an error. Used for a plan whose GPUs are in another machine."""
    lines = missing(workers)
    return (describe(lines),) if lines else ()


def describe(lines: tuple[str, ...]) -> str:
    """One message that lists all missing tools."""
    listed = "".join(f"\n  {line}." for line in lines)
    return f"GPU kernels are compiled at their first use, but this machine lacks tools for the compilation:{listed}"


def _own_directories() -> list[str]:
    """The directories of this Python environment's programs, and the directory of ``ninja``. The environment need not
    be activated.
    """
    directories = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable)]
    # If this environment extends another environment (by a .pth file), ninja may be in the other environment.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        package = importlib.metadata.distribution("ninja")
        programs = [file for file in package.files or () if file.name == "ninja" and "bin" in file.parts]
        directories += [os.path.dirname(os.path.abspath(str(package.locate_file(file)))) for file in programs]
    return [directory for directory in dict.fromkeys(directories) if os.path.isdir(directory)]


def _on_path(command: str, search: str) -> bool:
    """Whether the first word of a command is a program that can be found. An existing directory is accepted too,
    because nvcc accepts the directory of a compiler.
    """
    words = shlex.split(command)
    return bool(words) and (os.path.isdir(words[0]) or shutil.which(words[0], path=search) is not None)
