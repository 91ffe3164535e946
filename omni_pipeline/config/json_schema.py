"""Makes a JSON schema of the configuration. The schema includes each stage's own options, and uses docstrings as
descriptions.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec
from msgspec import Struct

from omni_pipeline.config.schema import Config, GroupConfig, HostConfig, StageConfig
from omni_pipeline.contract.graph import Graph

_ENTRY = re.compile(r"^(\w+(?:, \w+)*): (.*)$")


def json_schema(graph: Graph) -> dict[str, Any]:
    """JSON schema of a configuration file for `graph`."""
    kinds = {kind.__name__: kind for kind in structs(Config)} | {
        listed.__name__: listed for listed in (GroupConfig, HostConfig)
    }
    by_stage: list[tuple[str, Any, Any]] = []
    for spec in graph.stages:
        options = ("options", spec.options, None)
        kind = msgspec.defstruct(f"{spec.name}_stage", [options], bases=(StageConfig,), kw_only=True)
        by_stage.append((spec.name, kind, None))
        kinds |= {kind.__name__: StageConfig, spec.options.__name__: spec.options}
    stages = msgspec.defstruct("Stages", by_stage, forbid_unknown_fields=True)
    whole = msgspec.defstruct("Configuration", [("stages", stages, None)], bases=(Config,), kw_only=True)
    (schema,), components = msgspec.json.schema_components([whole])
    for name, component in components.items():
        component.pop("description", None)
        texts = descriptions(kinds.get(name, Config))
        for field, content in component["properties"].items():
            if "$ref" in content:  # a struct needs no default of its own, because each of its fields has a default
                content.pop("default", None)
            if field in texts:
                content["description"] = texts[field]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": components}


def structs(kind: type[Struct]) -> list[type[Struct]]:
    """`kind` and all struct types in its fields, the outermost type first. Each type occurs only once."""
    found = [kind]
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            found += [inner for inner in structs(field.type) if inner not in found]
    return found


def summary(kind: type[Struct]) -> str:
    """The first paragraph of a struct's docstring."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())


def descriptions(kind: type[Struct]) -> dict[str, str]:
    """Descriptions of the fields of a struct, from ``Attributes:`` in the docstrings of the struct and its base
    classes.
    """
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, Struct):
            texts |= _own_descriptions(base)
    return texts


def _own_descriptions(kind: type[Struct]) -> dict[str, str]:
    _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in listed.splitlines():
        entry = _ENTRY.match(line.removeprefix("    ")) if not line.startswith("     ") else None
        if entry:
            names = entry[1].split(", ")
            texts |= dict.fromkeys(names, entry[2])
        else:
            texts |= {name: f"{texts[name]} {line.strip()}".rstrip() for name in names}
    return {name: text.replace("``", "`") for name, text in texts.items()}
