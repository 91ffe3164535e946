"""Finds the configuration file that ``--config`` names: a path, or a layout that ships with the package.

The layouts are the files of ``configs/``. ``omni_pipeline/layouts`` is a link to this folder, so that a wheel contains
the layouts too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

import omni_pipeline
from omni_pipeline.errors import StartupError, suggestion

DIRECTORY = Path(omni_pipeline.__file__).parent / "layouts"

# Published guides contain commands with paths of configuration files. The files are in these folders. The commands run
# in the directory that contains the folders.
_IN_GUIDES = (Path("configs"), Path("examples/configs"))

_PREFIX = "qwen3_omni_"


class Layout(Struct, frozen=True):
    """A configuration file that ships with the package.

    Attributes:
        purpose: The purpose of the layout, in one sentence.
    """

    name: str
    path: Path
    purpose: str


class Found(Struct, frozen=True):
    """The file that ``--config`` names. If the file is not at the given path, `note` gives the reason."""

    path: Path
    note: str | None = None


def layouts() -> list[Layout]:
    """All layouts that ship with the package, sorted by name."""
    return sorted((_layout(path) for path in DIRECTORY.resolve().glob("*.yaml")), key=lambda layout: layout.name)


def find(given: str) -> Found:
    """The file that `given` names. An existing file takes precedence over a layout.

    Args:
        given: A path, the name of a layout, or the file name of a layout. If a path from the published guides
            (``configs/…``) does not exist here, the result is the layout with the same file name. So the commands in
            the guides work outside a checkout.

    Raises:
        StartupError: no file and no layout has that name.
    """
    path = Path(given)
    if path.exists() and not path.is_dir():
        return Found(path)
    shipped = layouts()
    for layout in shipped:
        if given in (layout.name, layout.path.name):
            return Found(layout.path)
        if path.name == layout.path.name and path.parent in _IN_GUIDES:
            return Found(layout.path, f"There is no {given} here: using the layout {layout.name}, {layout.path}.")
    problem = "it is a directory" if path.is_dir() else "there is no such file"
    raise StartupError(f"--config {given}: {problem}, {_nor_layout(path, shipped)}")


def complete(incomplete: str) -> Iterator[str]:
    """A shell's completions after ``--config``: names of layouts, and paths to directories and YAML files."""
    yield from (layout.name for layout in layouts() if layout.name.startswith(incomplete))
    above, name = os.path.split(incomplete)
    for path in sorted(Path(above or ".").glob("*")):
        if path.name.startswith(name) and (path.is_dir() or path.suffix in (".yaml", ".yml")):
            yield os.path.join(above, path.name) + ("/" if path.is_dir() else "")


def _nor_layout(path: Path, shipped: list[Layout]) -> str:
    """The end of an error message about a path that does not exist. Suggests a layout."""
    same = next((layout.name for layout in shipped if layout.path.name == path.name), None)
    if same is not None:
        return f"but there is a layout of that name: pass --config {same}."
    return f"and no layout of that name; {suggestion(_name(path), [layout.name for layout in shipped])}"


def _layout(path: Path) -> Layout:
    return Layout(_name(path), path, _first_sentence(path.read_text(encoding="utf-8")))


def _name(path: Path) -> str:
    """The layout's name: ``colocated-h100`` for ``qwen3_omni_colocated_h100.yaml``."""
    return path.stem.removeprefix(_PREFIX).replace("_", "-")


def _first_sentence(text: str) -> str:
    """The first sentence of the comment at the beginning of a file."""
    words: list[str] = []
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        words += line[2:].split()
    comment = " ".join(words)
    return comment[: comment.find(". ") + 1] or comment
