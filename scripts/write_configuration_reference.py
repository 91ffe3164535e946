#!/usr/bin/env python3
"""Writes the second part of docs/configuration.md from the code: every flag and every setting.

    python scripts/write_configuration_reference.py

A test fails if the page differs from the output of this script.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from omni_pipeline.commands.options import all_flags
from omni_pipeline.config.json_schema import descriptions, json_schema, structs, summary
from omni_pipeline.config.schema import Config, GroupConfig, HostConfig, StageConfig
from omni_pipeline.contract.graph import load_graph

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
MARK = "<!-- scripts/write_configuration_reference.py writes everything below this line. -->\n"


def main() -> None:
    PAGE.write_text(whole(PAGE.read_text()))


def whole(page: str) -> str:
    """`page`, with its second part generated from the code as it is now."""
    first, mark, _ = page.partition(MARK)
    return first + (mark or MARK) + "\n" + "\n".join(_reference())


def _reference() -> Iterator[str]:
    yield from ("## Flags", "")
    yield "`sgl-omni serve`, `plan`, `config show` and `config check` take these flags, besides `--config` and `--set`."
    yield from ("", "| flag | environment variable | sets | meaning | default |", "|---|---|---|---|---|")
    for flag in all_flags():
        value = f" {flag.metavar or getattr(flag.kind, '__name__', '').upper()}" if flag.kind is not bool else ""
        settings = ", ".join(f"`{path}`" for path in flag.settings)
        default = flag.default if isinstance(flag.default, str) else ""
        yield _row(f"`{flag.name}{value}`", f"`{flag.variable}`", settings, flag.help, default)
    graph = load_graph(Config().graph)
    defined = json_schema(graph)["$defs"]
    for kind in structs(Config):
        name = "Configuration" if kind is Config else kind.__name__
        yield from _section(_TITLES.get(name, f"`{name}`"), kind, defined[name])
    yield from _section("`stages.<name>`", StageConfig, defined[f"{graph.stages[0].name}_stage"])
    yield from _section("`groups.<name>`", GroupConfig, defined[GroupConfig.__name__])
    yield from _section("`hosts.<name>`", HostConfig, defined[HostConfig.__name__])
    for spec in graph.stages:
        if defined[spec.options.__name__]["properties"]:
            title = f"`stages.{spec.name}.options`"
            yield from _section(title, spec.options, defined[spec.options.__name__])


_TITLES = {
    "Configuration": "The file",
    "Server": "`server`",
    "MediaPolicy": "`server.media`",
    "Limits": "`server.limits`",
    "Trace": "`trace`",
    "Supervision": "`supervision`",
    "Routing": "`routing`",
    "Cluster": "`cluster`",
}


def _section(title: str, kind: Any, schema: dict[str, Any]) -> Iterator[str]:
    texts = descriptions(kind)
    yield from ("", f"## {title}", "", summary(kind).replace("``", "`"), "")
    yield from ("| setting | value | default | meaning |", "|---|---|---|---|")
    for name, field in schema["properties"].items():
        yield _row(f"`{name}`", _value(field), _default(field), texts.get(name, ""))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return ""
    text = yaml.safe_dump(field["default"], default_flow_style=True, width=10**6).removesuffix("\n")
    return f"`{text.removesuffix(chr(10) + '...')}`"


def _value(field: dict[str, Any]) -> str:
    """The values that a field of a JSON schema allows, in words."""
    if "$ref" in field:
        return "mapping"
    if "anyOf" in field:
        return " or ".join(_value(one) for one in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{one}`" for one in field["enum"])
    match field["type"]:
        case "integer" | "number" as kind:
            word = "whole number" if kind == "integer" else "number"
            return word + _bounds(field)
        case "array":
            return f"list: {_value(field['items'])}"
        case "object":
            return "mapping"
        case "string" if "pattern" in field:
            return "size such as `12GiB`"
        case "string":
            return "text"
        case "boolean":
            return "`true`, `false`"
        case kind:
            return str(kind)


def _bounds(field: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field]
    return f" {', '.join(bounds)}" if bounds else ""


if __name__ == "__main__":
    main()
