"""A process counts its messages, steps and batch sizes correctly."""

from __future__ import annotations

import pytest

from omni_pipeline.wire.counters import Distribution, Edges


@pytest.mark.parametrize(("figure", "bucket"), [(0.0, 0), (1.0, 0), (1.5, 1), (2.0, 1), (2.1, 2), (1e9, 2)])
def test_figure_falls_into_the_first_bucket_whose_bound_it_does_not_exceed(figure: float, bucket: int) -> None:
    distribution = Distribution.over((1.0, 2.0))
    distribution.add(figure)
    assert [index for index, count in enumerate(distribution.counts) if count] == [bucket]
    assert distribution.total == figure


def test_edges_are_kept_apart_and_added_up() -> None:
    edges = Edges()
    edges.add("a", "b", 10, 0.5)
    edges.add("a", "b", 20, 0.25)
    edges.add("b", "a", 0, 0.0)
    forth, back = edges.all()
    assert (forth.source, forth.target, forth.messages, forth.bytes) == ("a", "b", 2, 30)
    assert forth.seconds.total == 0.75
    assert (back.messages, back.bytes) == (1, 0)
