"""Describes a set of measurements by its mean and percentiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct


class Percentiles(Struct, frozen=True):
    """Mean, percentiles and maximum of some measurements, in their unit. `count` is the number of measurements."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """A percentile of `ordered`. `share` (0 … 1) is the fraction of the values that lie below the result. Interpolates
    linearly between neighbours, as numpy does by default.

    >>> percentile([1.0, 2.0, 4.0], 0.75)
    3.0
    """
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = math.ceil(position)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def percentiles_of(values: Iterable[float]) -> Percentiles | None:
    """The distribution of `values`; None if there are no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Percentiles(
        count=len(ordered),
        mean=math.fsum(ordered) / len(ordered),
        p50=percentile(ordered, 0.5),
        p90=percentile(ordered, 0.9),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
    )
