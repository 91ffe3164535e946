"""Provides simulated hosts to the tests of the connections between hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.omni_pipeline.wire.hosts import Host


@pytest.fixture
def host(run_root: Path) -> Iterator[Callable[..., Host]]:
    """Makes hosts, and closes them at the end. `run_root` fails if a host leaves a file."""
    hosts: list[Host] = []

    def make(*arguments: object, **options: object) -> Host:
        hosts.append(Host(run_root, *arguments, **options))  # type: ignore[arg-type]
        return hosts[-1]

    yield make
    for one in hosts:
        one.close()
