"""The fields that clients put beside a message or a content part and that no answer depends on.

They are accepted and not read, with any value. `docs/api.md` says which client sends which field.
"""

from __future__ import annotations

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
        "reasoning",
        "reasoning_content",
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


def drop_companions(messages: Any) -> None:
    """Remove these fields from decoded messages, in place. Whatever is not a message or a part is left as it is."""
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        _drop(message, OF_MESSAGES)
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                _drop(part, OF_PARTS)


def _drop(fields: dict[str, Any], names: frozenset[str]) -> None:
    for name in fields.keys() & names:
        del fields[name]
