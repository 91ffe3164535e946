"""Builds the wheel from a copy of the sources, and installs it into a new environment. This environment uses the large
packages of the test environment.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

# The files and folders from which a wheel is made.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "omni_pipeline", "stages", "gateway", "configs")


@dataclass(frozen=True)
class Installation:
    """An environment with the wheel in it.

    Attributes:
        root: Directory of the environment.
        home: An empty directory, in which the environment's commands are run.
    """

    root: Path
    home: Path

    @property
    def program(self) -> str:
        return str(self.root / "bin" / "sgl-omni")

    @property
    def packages(self) -> Path:
        [found] = self.root.glob("lib/python*/site-packages")
        return found

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the directory `home`, as from a shell in which no environment is active."""
        return subprocess.run(
            command, cwd=self.home, env=plain_environment(), capture_output=True, text=True, timeout=120, check=False,
            **options,
        )  # fmt: skip

    def sgl_omni(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.program, *arguments)

    def python(self, code: str, **options: Any) -> str:
        """The output of a program that the environment's Python runs."""
        done = self.run(str(self.root / "bin" / "python"), "-c", code, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout


def plain_environment() -> dict[str, str]:
    """The environment variables of this process, changed to hide GPUs, and without variables that make Python find this
    checkout.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"CUDA_VISIBLE_DEVICES": "", "PATH": os.defpath}


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a wheel from a directory or a source archive, without the network."""

    def build(source: Path) -> Path:
        out = tmp_path_factory.mktemp("wheel")
        pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source))
        [wheel] = out.iterdir()
        return wheel

    return build


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources. A copy is needed because a build writes files into the source directory."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="session")
def wheel(build: Callable[[Path], Path], sources: Path) -> Path:
    return build(sources)


@pytest.fixture(scope="session")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    installed = Installation(root, tmp_path_factory.mktemp("home"))
    heavy = importlib.util.find_spec("sglang")
    assert heavy is not None
    assert heavy.origin is not None
    (installed.packages / "heavy.pth").write_text(
        f"import site; site.addsitedir({str(Path(heavy.origin).parents[1])!r})"
    )
    pip("--python", str(root / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    return installed


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
