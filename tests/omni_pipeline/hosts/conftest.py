"""A directory for the hosts of a test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def hosts_dir() -> Iterator[Path]:
    """Directory for the temporary files and logs of hosts. Pytest's own directory cannot be used, because its path is
    too long for sockets.
    """
    directory = Path(tempfile.mkdtemp(prefix="omni-h-"))
    yield directory
    shutil.rmtree(directory)
