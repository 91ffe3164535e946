"""An inconsistent graph is refused, and a consistent graph gives its edges and stages."""

from __future__ import annotations

import pytest
from msgspec import Struct

from omni_pipeline.contract.graph import COLLECTOR, GATEWAY, Edge, Graph, StageSpec, load_factory, load_object
from tests.omni_pipeline.echo_stages import ECHO, ECHO_PATH, Options, Split, Text, Word


class Nothing(Struct):
    pass


def graph(*names: str, entry: str = "a", edges: tuple[Edge, ...] = ()) -> Graph:
    return Graph("g", tuple(StageSpec(name, "m:f", Options) for name in names), edges, entry)


@pytest.mark.parametrize(
    ("names", "entry", "edges", "reason"),
    [
        (("a", "a"), "a", (), "share a name"),
        (("a",), "b", (), "entry b is not a stage"),
        (("a",), "a", (Edge("a", "b", Nothing),), "a → b names an unknown stage"),
        (("a",), "a", (Edge("b", "a", Nothing),), "b → a names an unknown stage"),
        (("a",), "a", (Edge(COLLECTOR, "a", Nothing),), "collector → a names an unknown stage"),
        (("a",), "a", (Edge("a", GATEWAY, Nothing),), "a → gateway names an unknown stage"),
    ],
)
def test_graph_that_does_not_hang_together_is_refused(
    names: tuple[str, ...], entry: str, edges: tuple[Edge, ...], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        graph(*names, entry=entry, edges=edges)


def test_stage_is_found_by_name() -> None:
    assert ECHO.stage("split").factory.endswith(":Split")


def test_unknown_stage_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        ECHO.stage("spilt")


def test_each_edge_has_its_body_type() -> None:
    assert ECHO.body_types()["gateway", "split"] is Text
    assert ECHO.body_types()["split", "shout"] is Word


def test_narrowed_graph_keeps_edges_between_kept_stages() -> None:
    narrowed = ECHO.narrowed(frozenset({"split", "shout"}))
    assert narrowed.stage_names == ("split", "shout")
    assert [(edge.source, edge.target) for edge in narrowed.edges] == [("gateway", "split"), ("split", "shout")]


def test_narrowed_graph_needs_its_entry() -> None:
    with pytest.raises(ValueError, match="entry split"):
        ECHO.narrowed(frozenset({"shout"}))


def test_objects_load_by_dotted_path() -> None:
    assert load_object(ECHO_PATH) is ECHO
    assert load_factory(ECHO.stage("split")) is Split


def test_graph_of_the_model_loads_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys, stages.topology; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
