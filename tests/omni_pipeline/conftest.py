"""What the framework's tests share: a private place for run directories, and processes that leave with their test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable_by_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import the stages of these tests by name, from wherever they are started."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.fixture
def run_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where run directories are made in this test, and where none may be left (pytest's own path is too long)."""
    root = Path(tempfile.mkdtemp(prefix="omni-t-"))
    monkeypatch.setenv("TMPDIR", str(root))
    monkeypatch.setattr(tempfile, "tempdir", None)
    try:
        yield root
        assert list(root.iterdir()) == []
    finally:
        shutil.rmtree(root)
