"""The server of the demo model, and the reference on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.reference import SpokenReference
from tests.server import Server, colocated


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    return ROOT / "demo" / "qwen3-omni-demo"


@pytest.fixture(scope="session")
def demo_server(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Server]:
    """It may read the committed media where the usage guide has them."""
    directory = tmp_path_factory.mktemp("demo")
    (directory / "tests" / "data").mkdir(parents=True)
    for file in data.iterdir():
        (directory / "tests" / "data" / file.name).write_bytes(file.read_bytes())
    server = Server(demo_checkpoint, directory, colocated(), speech=True).start()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def demo_reference(demo_checkpoint: Path) -> SpokenReference:
    return SpokenReference(demo_checkpoint)
