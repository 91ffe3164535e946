"""Tests the percentiles of measurements."""

from __future__ import annotations

import random

import numpy
import pytest

from gateway.bench.percentiles import percentile, percentiles_of


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_percentile_is_numpys(count: int, share: float) -> None:
    ordered = sorted(random.Random(count).random() for _ in range(count))
    assert percentile(ordered, share) == pytest.approx(numpy.percentile(ordered, 100 * share))


def test_description_does_not_depend_on_the_order() -> None:
    assert percentiles_of([3.0, 1.0, 2.0]) == percentiles_of([1.0, 2.0, 3.0])


def test_description_has_mean_and_extreme() -> None:
    found = percentiles_of([1.0, 2.0, 6.0])
    assert found is not None
    assert (found.count, found.mean, found.p50, found.max) == (3, 3.0, 2.0, 6.0)


def test_nothing_measured_has_no_description() -> None:
    assert percentiles_of([]) is None
