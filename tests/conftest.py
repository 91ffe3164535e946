"""Fixtures that more than one part of the suite needs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """The default random checkpoint; made once, and remade when its recipe changes."""
    directory = ROOT / "checkpoints" / "tests" / "tiny"
    command = [sys.executable, ROOT / "scripts" / "make_tiny_checkpoint.py", "--out", directory]
    subprocess.run(command, check=True)
    return directory
