"""A short form of the measurement of hops runs over each transport."""

from __future__ import annotations

from pathlib import Path

import measure_hop
import pytest


@pytest.mark.parametrize("size", measure_hop.SIZES.values(), ids=measure_hop.SIZES)
def test_each_transport_is_measured(run_root: Path, size: int) -> None:
    found = measure_hop.measure(size, rounds=1, hops=2)
    assert list(found) == list(measure_hop.TRANSPORTS)
    assert all(0 < hop.fastest <= hop.median for hop in found.values())
