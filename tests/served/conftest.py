"""Provides fixtures for the tests of complete servers: a server with one worker for each stage, and the media that it
may read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.server import Server, fused, split

# The server's limits are small, so that tests can exceed them.
MAX_MEDIA = 6
MAX_MEDIUM_BYTES = 4 * 1024 * 1024
DECODED_BYTES = 100 * 1024 * 1024


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The directory that the server may read. It has the media at the same relative paths as this repository."""
    directory = tmp_path_factory.mktemp("repository")
    shutil.copytree(data, directory / "tests" / "data")
    return directory


@pytest.fixture(scope="session")
def server(tiny_checkpoint: Path, repository: Path) -> Iterator[Server]:
    media, limits = {"max_items": MAX_MEDIA, "max_bytes": MAX_MEDIUM_BYTES}, {"decoded_bytes": DECODED_BYTES}
    config = split() | {"server": {"media": media, "limits": limits}}
    server = Server(tiny_checkpoint, repository, config, ["--model-name", "qwen3-omni"]).start()
    yield server
    assert server.stop() == 0
    # the tests must not have caused any unexpected error in the server
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="session")
def speaker(tiny_checkpoint: Path, repository: Path) -> Iterator[Server]:
    """A server that can answer with speech. A limit on enlarged pictures keeps the time to encode them short."""
    config = {"stages": {"preprocessing": {"options": {"max_resized_pixels": 1_000_000}}}}
    server = Server(tiny_checkpoint, repository, config, ["--model-name", "qwen3-omni"], speech=True).start()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="session")
def reasoner(checkpoints: Callable[[str], Path], repository: Path) -> Iterator[Server]:
    """A server of a checkpoint that reasons and has no speech, started without `--text-only`."""
    server = Server(checkpoints("thinking"), repository, fused(), speech=True).start()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    """OpenAI's client with the settings of a usual user, but without retries, because retries would hide failures."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
