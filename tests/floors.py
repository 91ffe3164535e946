"""Finds the imports between the *rooms* of the code, and the imports that break the rule of the *floors*.

A room is a folder of a package, or a module that is directly in a package. Each room belongs to a floor, and may import
only rooms of lower floors (see docs/architecture.md). No module may import itself through other modules. The files are
read but not run. So all imports count: at the top of a module, inside a function, or for type checking only.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Rooms = dict[str, dict[str, list[str]]]
"""For each room, the rooms that it imports, each with the files that contain the imports."""


def imports_of(source: str) -> Iterator[str]:
    """Dotted names that a module imports; ``a.b`` for `from a import b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def read_rooms(root: Path, packages: Sequence[str]) -> Rooms:
    """The rooms of these packages under `root`, each with the rooms that it imports."""
    rooms: Rooms = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            own = room_of(parts[:-1] if parts[-1] == "__init__" else parts)
            found = rooms.setdefault(own, defaultdict(list))
            for name in imports_of(path.read_text()):
                other = room_of(name.split("."))
                if name.partition(".")[0] in packages and other != own:
                    found[other].append(str(path.relative_to(root)))
    return rooms


def importers(folder: Path, package: str) -> list[str]:
    """The files in `folder` that import `package`, or anything in it."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*.py"))
        if any(name.partition(".")[0] == package for name in imports_of(path.read_text()))
    ]


def room_of(parts: Sequence[str]) -> str:
    """The room of a module: ``omni_pipeline.wire`` for modules in that folder, and ``omni_pipeline.errors`` for the
    module of this name.
    """
    return ".".join(parts[:2])


def upward(rooms: Rooms, floors: Sequence[Sequence[str]]) -> list[str]:
    """A sentence for each import that does not lead to a lower floor.

    Args:
        floors: The rooms of each floor, from the lowest floor to the highest. Rooms of one floor must not import each
            other.
    """
    level = {room: number for number, floor in enumerate(floors) for room in floor}
    unknown = [f"{room} has no floor" for room in rooms if room not in level]
    return unknown + [
        f"{files[0]} imports {target}, which is not below {room}"
        for room, targets in rooms.items()
        for target, files in targets.items()
        if room in level and level.get(target, -1) >= level[room]
    ]


def circles(modules: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in modules.get(module, ()):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in modules:
        if module not in order:
            visit(module)
    return found


def read_modules(root: Path, packages: Sequence[str]) -> dict[str, set[str]]:
    """Every module of these packages under `root`, with the modules of these packages that it imports."""
    paths = {}
    for package in packages:
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    modules: dict[str, set[str]] = {}
    for name, path in paths.items():
        wanted = imports_of(path.read_text())
        # `from a import b` imports the module a.b if there is one, else a.
        modules[name] = {one if one in paths else one.rpartition(".")[0] for one in wanted} & paths.keys() - {name}
    return modules
