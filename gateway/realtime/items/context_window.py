"""Leaves the oldest items out of a prompt that is too long for the model, according to the session's `truncation`."""

from __future__ import annotations

from gateway.realtime.items.conversation import Item, Message
from gateway.realtime.protocol.client_events import RetentionRatio, Truncation

TOO_LONG = "context_length_exceeded"
"""The code of the error for a prompt that is too long."""

_SHARE = 0.5


class ContextWindow:
    """The part of one conversation that still fits into the model's context.

    If items did not fit into one prompt, they are left out of all later prompts too. So all later prompts begin with
    the same items, and this beginning is found in the prefix cache. The items stay in the conversation.
    """

    def __init__(self) -> None:
        self._first: str | None = None  # id of the first item that fits

    def within(self, items: list[Item]) -> list[Item]:
        """The items of the conversation without the items that did not fit. System messages are always included."""
        begin = next((index for index, item in enumerate(items) if item.id == self._first), 0)
        return [item for item in items[:begin] if _is_of_system(item)] + items[begin:]

    def shorten(self, items: list[Item], truncation: Truncation) -> list[Item] | None:
        """The items of a prompt that is shorter than `items`. After the system messages, this prompt begins with a
        message of the user. None if there is no such prompt, or if `truncation` does not allow a shorter prompt.
        """
        if truncation == "disabled":
            return None
        share = truncation.retention_ratio if isinstance(truncation, RetentionRatio) else _SHARE
        drop = max(int(len(items) * (1 - share)), 1)
        for index in range(drop, len(items)):
            item = items[index]
            if isinstance(item, Message) and item.role == "user":
                self._first = item.id
                return [item for item in items[:index] if _is_of_system(item)] + items[index:]
        return None


def _is_of_system(item: Item) -> bool:
    return isinstance(item, Message) and item.role == "system"
