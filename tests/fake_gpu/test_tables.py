"""The placement guide's tables equal the outcomes of the faked starts."""

from __future__ import annotations

import re
from collections.abc import Callable

import placement_tables
from faked_starts import tables
from faked_starts.data import Built
from faked_starts.layouts import FakedStart
from faked_starts.resolution import Started


def test_the_guide_has_the_tables_of_the_faked_starts(
    all_starts: list[FakedStart], started: list[Started], model: Callable[[str, str], Built]
) -> None:
    made = {"layouts": tables.fitting(all_starts), "arguments": tables.arguments(started, model)}
    document = placement_tables.DOCUMENT.read_text(encoding="utf-8")
    assert re.findall(r"<!-- faked start: (\S+) -->", document) == list(made)
    wanted = placement_tables.filled(document, made, "faked start")
    assert document == wanted, "run python scripts/placement_tables.py --write"


def test_every_layout_fits_on_a_machine_that_has_the_gpus_it_names(all_starts: list[FakedStart]) -> None:
    """Each layout fits on at least one kind of GPU, in BF16 and in FP8, so every row of the guide is useful."""
    for kind in ("BF16", "FP8"):
        layouts = {start.layout for start in all_starts}
        assert layouts == {start.layout for start in all_starts if start.fits and start.kind == kind}
