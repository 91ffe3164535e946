"""Writes the grammar of an answer that must call a tool, or whose calls must follow the schemas of their tools."""

from __future__ import annotations

import json
from typing import Any

from omni_pipeline.errors import bad_request
from stages.messages import Grammar, Tool, ToolUse
from stages.preprocessing.call_format import CallFormat

_ANY_ARGUMENTS = {"type": "object"}


def grammar_with_tools(use: ToolUse, form: CallFormat, wanted: Grammar | None) -> Grammar | None:
    """The grammar of an answer; None if the answer may be any text.

    Args:
        form: The format in which the model writes calls.
        wanted: The grammar that the client asked for. It applies to answers without calls.

    Raises:
        OmniError: 400 if the client's grammar cannot be combined with the tools.
    """
    tools = [tool for tool in use.tools if tool.name in use.callable]
    if use.required:
        return _grammar(_calls(tools, form, parallel=use.parallel, strict=True))
    if wanted is not None:
        return _grammar({"type": "or", "elements": [_content(wanted), _calls(tools, form, parallel=use.parallel)]})
    if not any(tool.strict for tool in tools):
        return None
    return _grammar(
        {
            "type": "triggered_tags",
            "triggers": [form.opening],
            "tags": [_tag(tool, form, strict=tool.strict) for tool in tools],
            "stop_after_first": not use.parallel,
        }
    )


def _calls(tools: list[Tool], form: CallFormat, *, parallel: bool, strict: bool = False) -> dict[str, Any]:
    """The format of an answer that consists only of calls.

    Args:
        strict: Whether the arguments must follow the schemas of all tools. If not, only the arguments of tools with
            `strict` must follow their schemas.
    """
    return {
        "type": "tags_with_separator",
        "tags": [_tag(tool, form, strict=strict or tool.strict) for tool in tools],
        "separator": form.between,
        "at_least_one": True,
        "stop_after_first": not parallel,
    }


def _tag(tool: Tool, form: CallFormat, *, strict: bool) -> dict[str, Any]:
    schema = json.loads(tool.parameters) if strict and tool.parameters else _ANY_ARGUMENTS
    content = {"type": "json_schema", "json_schema": schema}
    return {"type": "tag", "begin": form.begin(tool.name), "content": content, "end": form.end}


def _content(wanted: Grammar) -> dict[str, Any]:
    """The format of an answer without calls."""
    match wanted.kind:
        case "json_schema":
            return {"type": "json_schema", "json_schema": json.loads(wanted.source)}
        case "regex":
            return {"type": "regex", "pattern": wanted.source}
        case _:
            raise bad_request(
                f"The grammar in '{wanted.param}' cannot be combined with 'tools'. Send a JSON schema or a regular "
                "expression instead, or set 'tool_choice' to 'none'.",
                param=wanted.param,
                code="invalid_value",
            )


def _grammar(form: dict[str, Any]) -> Grammar:
    return Grammar("structural_tag", json.dumps({"type": "structural_tag", "format": form}), param="tools")
