"""Provides a server of the demo model, and the reference implementation with the same weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.reference import SpokenReference
from tests.server import Server, colocated

CHECKPOINT = Path(os.environ.get("DEMO_CHECKPOINT", ROOT / "demo" / "qwen3-omni-demo"))
"""The shipped checkpoint, or another one to test."""


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Server]:
    """A server that may read the committed media at the paths of the usage guide."""
    directory = tmp_path_factory.mktemp("demo")
    shutil.copytree(data, directory / "tests" / "data")
    server = Server(CHECKPOINT, directory, colocated(), speech=True).start()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def demo_reference() -> SpokenReference:
    """The reference implementation. It computes in float32, like the server on a CPU; the weights are in bfloat16."""
    return SpokenReference(CHECKPOINT)
