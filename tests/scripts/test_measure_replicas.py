"""The measurement of replicas judges its results correctly. A short form of it runs with two replicas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import measure_replicas
import pytest
from measure_replicas import Measured

ONE = Measured(alone=1.0, together=2.0)


@pytest.mark.parametrize(
    ("found", "broken"),
    [
        ({1: ONE, 2: Measured(0.98, 3.9), 4: Measured(0.96, 7.3)}, []),
        ({1: ONE, 2: Measured(1.0, 3.7)}, ["2 replicas bring 1.85 times the throughput, not 1.9."]),
        ({1: ONE, 4: Measured(1.0, 7.0)}, ["4 replicas bring 3.50 times the throughput, not 3.6."]),
        ({1: ONE, 2: Measured(0.9, 4.0)}, ["With 2 replicas, a single stream loses 10% of its throughput."]),
    ],
)
def test_a_broken_promise_is_named(found: dict[int, Measured], broken: list[str]) -> None:
    assert measure_replicas.judge(found) == broken
    assert measure_replicas.row(1, found) == "| 1 | 1.000 | 2.000 | 1.00 |"


def test_short_form_serves_from_two_replicas(checkpoints: Callable[[str], Path]) -> None:
    few = ["--replicas", "2", "--batch", "1", "--tokens", "3", "--audio-frames", "4", "--rounds", "2", "--slow", "1"]
    options = measure_replicas.parser().parse_args(["--model-path", str(checkpoints("nano")), *few])
    found = measure_replicas.measure(2, options)
    assert found.alone > 0
    assert found.together > 0
