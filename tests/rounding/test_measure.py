"""The docs have the same measured figures as `measured.json`, from which the limits for bfloat16 are computed."""

from __future__ import annotations

import json

from tests.conftest import ROOT
from tests.rounding import limits, measure

DOCS = ROOT / "docs" / "gpu-check.md"


def test_the_page_has_the_measured_figures_and_their_limits() -> None:
    measured = json.loads(limits.FILE.read_text())
    assert tuple(measured) == limits.CHECKPOINTS
    assert measure.table(measured) in DOCS.read_text()


def test_the_page_has_the_factors() -> None:
    page = " ".join(DOCS.read_text().split())
    factors = limits.FACTORS
    assert f"{factors['median']} for the median of all values, {factors['group']} for the median of a group" in page
    assert f"{factors['90th percentile']:g} for a 90th percentile and for the fraction of tokens that differ" in page
    assert factors["90th percentile"] == factors["differ"]
    assert f"{factors[limits.CHANGE]:g} for the change of the *lead*" in page
