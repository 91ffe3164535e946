"""Limits for each stage's errors in bfloat16. Each limit is the reference's own error in bfloat16, multiplied by a
factor.

`measured.json` contains these errors for each checkpoint. Hugging Face's own modules in bfloat16 on a CPU are compared
with the same modules in float32 on the same inputs. `python -m tests.rounding.measure --write` writes the file again.
Correct kernels may round at other points of the computation than Hugging Face's modules, so each limit has a margin.
The less a figure varies, the smaller is its margin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.rounding.deviations import Figures

CHECKPOINTS = ("tiny", "nano", "demo")
FILE = Path(__file__).with_name("measured.json")
CHANGE = "change of a lead: 99th percentile"

FACTORS = {
    # This figure is the median of hundreds of results. The median changes by 10 % with other correct kernels, and by
    # 50 % if the output of a layer is 2 % too large.
    "median": 1.4,
    "group": 1.7,  # the median of one group of results
    "90th percentile": 2.0,  # this figure depends mostly on tokens for which a router picked another expert
    "differ": 2.0,
    CHANGE: 3.0,  # a best candidate whose lead is smaller than this limit may become second-best
}
"""For each kind of figure, the factor by which the limit is larger than the measured value."""

FLOOR = 0.01
"""This number is added to the limits of the kind `differ`, which are shares of results. So one result in a hundred may
differ even if no result differed in the measurement.
"""


def kind(figure: str) -> str:
    """The key of a figure in `FACTORS`."""
    if ": median, " in figure:
        return "group"
    return next(ending for ending in FACTORS if figure.endswith(ending))


def limit(figure: str, measured: float) -> float:
    """The limit of a figure, computed from the measured value."""
    own = kind(figure)
    return measured * FACTORS[own] + (FLOOR if own == "differ" else 0.0)


def limits(checkpoint: str) -> Figures:
    """All limits for a checkpoint, by figure."""
    measured: dict[str, Figures] = json.loads(FILE.read_text(encoding="utf-8"))
    return {figure: limit(figure, value) for figure, value in measured[checkpoint].items()}


def too_large(figures: Mapping[str, float], most: Mapping[str, float]) -> list[str]:
    """A sentence for each figure that exceeds its limit. NaN exceeds any limit."""
    return [
        f"{figure} is {value:.3g}, and may be {most[figure]:.3g}"
        for figure, value in figures.items()
        if not value <= most[figure]
    ]
