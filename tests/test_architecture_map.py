"""The map in docs/architecture.md agrees with the code: its tables have the right floors, and every file and name in it
exists.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_floors import FRAMEWORK, GATEWAY, STAGES

ROOT = Path(__file__).parents[1]
PACKAGES = ("omni_pipeline", "stages", "gateway")
PAGE = (ROOT / "docs" / "architecture.md").read_text()
SECTION = re.split(r"^## ", PAGE.partition("\n## Where things are\n")[2], maxsplit=1, flags=re.MULTILINE)[0]

# A path of this repository in backquotes, with or without a name from that file: `folder/file.py: Class.method`.
REFERENCE = re.compile(r"`((?:omni_pipeline|stages|gateway|scripts|tests|configs)/[\w/.]*)(?:: ([\w.]+))?`")
# A name in backquotes without a path, such as `Abort` or `Answer.take`.
BARE = re.compile(r"`([A-Z]\w*[a-z]\w*(?:\.\w+)?)`")
ROW = re.compile(r"^\| (\d+) \| `([\w/.]+)` \|", re.MULTILINE)
JOURNEYS = 9


def missing(text: str) -> Iterator[str]:
    """The references in `text` to files or names that do not exist."""
    for found in REFERENCE.finditer(text):
        path, name = ROOT / found[1], found[2]
        if not path.exists() or (name and name not in names_in(path)):
            yield found[0]


def missing_bare(text: str) -> set[str]:
    """The names without a path in `text` that no module defines."""
    defined = set().union(*(names_in(path) for package in PACKAGES for path in (ROOT / package).rglob("*.py")))
    return set(BARE.findall(text)) - defined


def names_in(path: Path) -> set[str]:
    """The names that a module defines at its top level, and the names that its classes define, as `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        names |= defined(node)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for member in node.body for name in defined(member)}
    return names


def defined(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def test_every_file_and_name_exists() -> None:
    assert list(missing(SECTION)) == []


def test_every_journey_names_functions() -> None:
    journeys = [part for part in SECTION.split("\n### ") if "\n1. " in part]
    assert len(journeys) == JOURNEYS
    assert all(sum(bool(found[2]) for found in REFERENCE.finditer(part)) >= 8 for part in journeys)


def test_every_name_without_a_file_exists() -> None:
    assert missing_bare(SECTION) == set()


def floors_of(package: str) -> dict[str, int]:
    """The rooms of a package, each with the number of its floor."""
    floors = {"omni_pipeline": FRAMEWORK, "stages": STAGES, "gateway": GATEWAY}[package]
    return {room: level for level, floor in enumerate(floors, 1) for room in floor if room != package}


@pytest.mark.parametrize("name", PACKAGES)
def test_tables_have_the_floors(name: str) -> None:
    rooms = floors_of(name)
    rows = [(found[2].removesuffix(".py").replace("/", "."), int(found[1])) for found in ROW.finditer(SECTION)]
    listed = [(room, level) for room, level in rows if room.startswith(f"{name}.")]
    assert dict(listed) == rooms
    assert [level for _, level in listed] == sorted(rooms.values(), reverse=True)


@pytest.mark.parametrize("name", PACKAGES)
def test_picture_has_the_floors(name: str) -> None:
    picture = SECTION.split("```\n")[1]
    head, *lines = picture.partition("\n\n  gateway  ")[0].splitlines()
    start = head.index(name)
    end = min((head.index(other) for other in PACKAGES if head.index(other) > start), default=None)
    drawn = [f"{name}.{room}" for line in lines for room in re.findall(r"\w+", line[start:end])]
    rooms = floors_of(name)
    assert sorted(drawn) == sorted(rooms)
    assert [rooms[room] for room in drawn] == sorted(rooms.values(), reverse=True)


@pytest.mark.parametrize(
    "planted",
    [
        "`stages/thinker/stages.py`",
        "`stages/attic`",
        "`stages/thinker/stage.py: Thinker.think`",
        "`stages/thinker/stage.py: Talker`",
        "`stages/flags.py: QWEN2_OMNI_FLAGS`",
    ],
)
def test_planted_wrong_name_is_found(planted: str) -> None:
    assert list(missing(f"1. {planted} does it.")) == [planted]


def test_planted_wrong_name_without_a_file_is_found() -> None:
    assert missing_bare("It sends `Abort` and calls `Answer.swallow`.") == {"Answer.swallow"}
