"""Keeps the items of one session's conversation, and counts their bytes."""

from __future__ import annotations

import contextlib

from gateway.realtime.items.conversation import Conversation, Item, Message, PictureContent, SoundContent, size_of
from gateway.realtime.items.kept_bytes import KeptBytes
from omni_pipeline.errors import OmniError, bad_request


def place_of(item: Item, index: int) -> str:
    """The name that error messages use for one part of an item. `index` is the part's place in the item's content."""
    return f"{item.id}.content[{index}]"


class KeptItems:
    """The conversation of one session.

    Args:
        most_items: Largest number of items.
        kept: Counts the bytes of the session.

    Attributes:
        conversation: The items in order.
    """

    def __init__(self, most_items: int, kept: KeptBytes) -> None:
        self.conversation = Conversation(most_items)
        self._kept = kept
        self._sizes: dict[str, int] = {}  # the bytes of each counted item, by the item's id

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Add an item of the client. Returns the id of the item before the new item.

        A part of the item may contain sound or a picture. If the pipeline later reports an error about this sound or
        picture, the error contains the name of the part. The function `place_of` makes this name.

        Raises:
            OmniError: The errors that `Conversation.check` and `KeptBytes.hold` raise.
        """
        self.conversation.check(item, after)
        size = size_of(item)
        self._kept.hold(size)
        self._sizes[item.id] = size
        for index, content in enumerate(item.content if isinstance(item, Message) else ()):
            if isinstance(content, SoundContent | PictureContent):
                content.medium.param = place_of(item, index)
        return self.conversation.add(item, after)

    def count(self, item: Item) -> None:
        """Count the bytes of an item that the model has made. If the bytes would exceed the limit, the item is kept and
        not counted, because it is small.
        """
        if item not in self.conversation.items:
            return  # the client has deleted the item
        with contextlib.suppress(OmniError):
            size = size_of(item)
            self._kept.hold(size)
            self._sizes[item.id] = size

    def remove(self, item: Item) -> None:
        """Remove an item."""
        self.conversation.remove(item)
        self._kept.release(self._sizes.pop(item.id, 0))

    def with_medium_at(self, place: str | None) -> Item | None:
        """The item that has a part with the name `place` (see `place_of`). None if there is no such item."""
        for item in self.conversation.items:
            for index in range(len(item.content) if isinstance(item, Message) else 0):
                if place_of(item, index) == place:
                    return item
        return None

    def found(self, item_id: str, *, code: str, param: str = "item_id") -> Item:
        """The item with this id.

        Args:
            code: Code of the error if there is no such item.
            param: Name of the field that contains the id, for the error.

        Raises:
            OmniError: 400 if there is no such item.
        """
        item = self.conversation.find(item_id)
        if item is None:
            raise bad_request(f"The conversation has no item with the id '{item_id}'.", param=param, code=code)
        return item
