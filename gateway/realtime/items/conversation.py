"""The items of one conversation in their order, and the turns that the model gets."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from gateway.realtime.items.heard_words import SpokenWords
from omni_pipeline.errors import bad_request
from stages.messages import Media, MediaRef, Text, ToolCall, Turn

ROOT = "root"
"""The id that means the position before the first item."""

Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]

# Approximate size in memory, in bytes, of an item or of a part of an item, without its text and its media item.
_ITEM_BYTES = 512
_ID_BYTES = 40


class TextContent(Struct):
    """Text of any speaker."""

    text: str


class SoundContent(Struct):
    """Sound of the user. The server sends `transcript` to clients, but not to the model. `transcript` is None until it
    is known.
    """

    medium: Media
    seconds: float
    transcript: str | None = None


class PictureContent(Struct):
    """A picture of the user."""

    medium: Media


class SpokenContent(Struct):
    """A spoken answer.

    Attributes:
        words: All words of the answer, and the time at which the user hears each word.
        heard: Number of samples that the user has heard; None means that the user hears all samples.
    """

    words: SpokenWords
    heard: float | None = None

    @property
    def transcript(self) -> str:
        """The words that the model gets in later turns: the words that the user has heard."""
        return self.words.text if self.heard is None else self.words.heard(self.heard)

    def cut(self, samples: float) -> None:
        """Shorten the answer. `samples` is the number of samples that are left. If an earlier cut has already left
        fewer samples, do nothing.
        """
        self.heard = samples if self.heard is None else min(self.heard, samples)


Content: TypeAlias = TextContent | SoundContent | PictureContent | SpokenContent


class Message(Struct, eq=False):
    """A message.

    Attributes:
        generated: Token ids of the whole response, if this is the first item of a response of the model. Otherwise the
            list is empty.
    """

    id: str
    role: Literal["system", "user", "assistant"]
    content: list[Content]
    status: Status = "completed"
    generated: list[int] = []


class Call(Struct, eq=False):
    """A call of a tool. `generated` has the same meaning as in `Message`."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status = "completed"
    generated: list[int] = []


class CallOutput(Struct, eq=False):
    id: str
    call_id: str
    output: str
    status: Status = "completed"


Item: TypeAlias = Message | Call | CallOutput


class Conversation:
    """The items of one conversation.

    Args:
        most_items: Largest number of items.
    """

    def __init__(self, most_items: int) -> None:
        self._most_items = most_items
        self._items: list[Item] = []

    @property
    def items(self) -> list[Item]:
        """The items in order."""
        return self._items

    @property
    def last_id(self) -> str | None:
        return self._items[-1].id if self._items else None

    def find(self, item_id: str) -> Item | None:
        """The item with this id, if there is one."""
        return next((item for item in self._items if item.id == item_id), None)

    def check_room(self) -> None:
        """Raises OmniError (400) if the conversation has no room for another item."""
        if len(self._items) >= self._most_items:
            raise bad_request(
                f"The conversation has {self._most_items} items, which is the limit of this server. Delete some items.",
                code="too_many_items",
            )

    def check(self, item: Item, after: str | None) -> None:
        """Raises OmniError (400) if `add` cannot add the item. There are three possible reasons: there is no item with
        the id `after`, another item has the id of the new item, or there is no room.
        """
        self.check_room()
        if self.find(item.id) is not None:
            raise bad_request(
                f"The conversation already has an item with the id '{item.id}'.",
                param="item.id",
                code="item_create_duplicate_item_id",
            )
        if after not in (None, ROOT) and self.find(after) is None:
            raise bad_request(
                f"The conversation has no item with the id '{after}'.",
                param="previous_item_id",
                code="item_create_invalid_previous_item_id",
            )

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Add an item that `check` accepts. Returns the id of the item before the new item, if there is one.

        Args:
            after: Id of the item before the new item, or `ROOT` for the beginning. None adds the item at the end.
        """
        ids = [own.id for own in self._items]
        place = len(ids) if after is None else 0 if after == ROOT else ids.index(after) + 1
        self._items.insert(place, item)
        return ids[place - 1] if place else None

    def insert(self, item: Item, after: str | None) -> str | None:
        """Add an item that the model has made, even if the conversation then has more items than the limit allows.
        Returns the id of the item before the new item.

        Args:
            after: Id of the item before the new item; None for the beginning. If the client has deleted the item
                `after`, the new item comes last.
        """
        if after is None:
            return self.add(item, ROOT)
        return self.add(item, after if self.find(after) is not None else None)

    def before(self, item: Item) -> str | None:
        """The id of the item before `item`."""
        place = self._items.index(item) if item in self._items else 0
        return self._items[place - 1].id if place else None

    def remove(self, item: Item) -> None:
        """Remove an item."""
        self._items.remove(item)


def size_of(item: Item) -> int:
    """Approximate size of an item in memory, in bytes."""
    match item:
        case Message():
            return _ITEM_BYTES + sum(map(_size_of_content, item.content)) + _ID_BYTES * len(item.generated)
        case Call():
            return _ITEM_BYTES + len(item.arguments.encode()) + _ID_BYTES * len(item.generated)
        case CallOutput():
            return _ITEM_BYTES + len(item.output.encode())


def _size_of_content(content: Content) -> int:
    match content:
        case TextContent():
            return _ITEM_BYTES + len(content.text.encode())
        case SpokenContent():
            return _ITEM_BYTES + len(content.transcript.encode())
        case SoundContent() | PictureContent():
            return _ITEM_BYTES + content.medium.nbytes


def turns_of(items: Iterable[Item], instructions: str) -> tuple[list[Turn], list[Media]]:
    """The turns of a chat request for these items, and the media in them.

    A message of the model and the calls after it are one turn, because the model has written them together. Several
    calls without a message are one turn too.
    """
    turns: list[Turn] = []
    media: list[Media] = []
    if instructions:
        turns.append(Turn("system", [Text(instructions)]))
    for item in items:
        match item:
            case Message():
                turn = Turn(item.role, [], ids=list(item.generated))
                for content in item.content:
                    match content:
                        case TextContent():
                            turn.content.append(Text(content.text))
                        case SpokenContent():
                            turn.content.append(Text(content.transcript))
                        case SoundContent() | PictureContent():
                            turn.content.append(MediaRef(len(media)))
                            media.append(content.medium)
                turns.append(turn)
            case Call():
                if not turns or turns[-1].role != "assistant":
                    turns.append(Turn("assistant", [], ids=list(item.generated)))
                last = turns[-1]
                last.calls = [*last.calls, ToolCall(item.name, item.arguments)]
            case CallOutput():
                turns.append(Turn("tool", [Text(item.output)]))
    return turns, media


def shown(item: Item) -> dict[str, Any]:
    """An item, as events show it. Media are left out, because some clients do not accept messages that large."""
    common = {"id": item.id, "object": "realtime.item", "status": item.status}
    match item:
        case Message():
            content = [_shown_content(content, item.role) for content in item.content]
            return {**common, "type": "message", "role": item.role, "content": content}
        case Call():
            return {
                **common,
                "type": "function_call",
                "call_id": item.call_id,
                "name": item.name,
                "arguments": item.arguments,
            }
        case CallOutput():
            return {**common, "type": "function_call_output", "call_id": item.call_id, "output": item.output}


def _shown_content(content: Content, role: str) -> dict[str, Any]:
    match content:
        case TextContent():
            return {"type": "output_text" if role == "assistant" else "input_text", "text": content.text}
        case SpokenContent():
            return {"type": "output_audio", "transcript": content.transcript}
        case SoundContent():
            return {"type": "input_audio", "transcript": content.transcript}  # clients need it even if it is null
        case PictureContent():
            return {"type": "input_image"}


def new_id(kind: str) -> str:
    """A new id of at most 32 characters, which begins with `kind`."""
    return f"{kind}_{secrets.token_hex(12)}"
