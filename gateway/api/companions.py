"""Lists additional fields that clients send in a message, a content part, a call or a tool, and that do not change any
answer.

The server accepts these fields with any value and does not read them. `docs/api.md` lists which client sends which
field.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

OF_MESSAGES = frozenset(
    {
        "annotations",
        "cache_control",
        "content-type",
        "id",
        "index",
        "is_error",
        "parsed",
        "provider_specific_fields",
        "reasoning_details",
        "reasoning_items",
        "thinking_blocks",
    }
)

OF_PARTS = frozenset(
    {
        "annotations",
        "cache_control",
        "content-type",
        "extras",
        "id",
        "index",
        "prompt_cache_breakpoint",
        "uuid",
    }
)

OF_CALLS = frozenset({"cache_control", "extra_content", "index", "provider_specific_fields"})

OF_FUNCTIONS_OF_CALLS = frozenset({"parsed_arguments"})

OF_TOOLS = frozenset({"cache_control"})


def drop_companions(messages: Any) -> None:
    """Remove the additional fields from decoded messages, in place. Values that are not a message, a part or a call are
    not changed.
    """
    for message in _objects(messages):
        drop(message, OF_MESSAGES)
        for part in _objects(message.get("content")):
            drop(part, OF_PARTS)
        for call in _objects(message.get("tool_calls")):
            drop(call, OF_CALLS)
            if isinstance(function := call.get("function"), dict):
                drop(function, OF_FUNCTIONS_OF_CALLS)


def drop_companions_of_tools(tools: Any) -> None:
    """Remove the additional fields from decoded tools, in place."""
    for tool in _objects(tools):
        drop(tool, OF_TOOLS)


def _objects(values: Any) -> Iterator[dict[str, Any]]:
    return (value for value in values if isinstance(value, dict)) if isinstance(values, list) else iter(())


def drop(fields: dict[str, Any], names: frozenset[str]) -> None:
    """Remove the fields with these names from an object, in place."""
    for name in fields.keys() & names:
        del fields[name]
