"""Parses YAML, and refuses a mapping that has a key twice. PyYAML alone would drop the first value."""

from __future__ import annotations

from typing import Any

import yaml


class RepeatedKeyError(ValueError):
    """Raised for a mapping that has a key twice."""


def parse(text: str) -> Any:
    """The content of a YAML document.

    Raises:
        RepeatedKeyError: a mapping has a key twice.
        yaml.YAMLError: the text is not YAML.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _refuse_repeated_keys(root, set())
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _refuse_repeated_keys(node: yaml.Node, seen: set[int]) -> None:
    """Check `node` and all nodes inside it. `seen` contains the nodes that have been checked already."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, seen)
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        _refuse_repeated_keys(value, seen)
        line = key.start_mark.line + 1
        name = (key.tag, str(key.value))
        if name in lines:
            raise RepeatedKeyError(f"{key.value} is set twice, in line {lines[name]} and in line {line}.")
        lines[name] = line
