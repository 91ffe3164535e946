"""Provides the reference implementation with the weights of the demo model."""

from __future__ import annotations

import pytest

from tests.conftest import DEMO
from tests.reference import SpokenReference


@pytest.fixture(scope="session")
def demo_reference() -> SpokenReference:
    """The reference implementation. It computes in float32, like the server on a CPU; the weights are in bfloat16."""
    return SpokenReference(DEMO)
