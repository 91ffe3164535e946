"""Output items whose text is not complete yet, and the events about these items."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import msgspec

from gateway.api.responses import ChosenLogprob
from gateway.api.responses_api.objects import (
    ContentPartAdded,
    ContentPartDone,
    Event,
    OutputItemAdded,
    OutputItemDone,
    OutputMessage,
    OutputReasoning,
    OutputText,
    OutputTextDelta,
    OutputTextDone,
    ReasoningText,
    ReasoningTextDelta,
    ReasoningTextDone,
    Status,
)

Part = TypeVar("Part", OutputText, ReasoningText)


class OpenItem(ABC, Generic[Part]):
    """An item with one part of text.

    Args:
        item: The item. Its content is `part`.
        part: The part, without text.
        place: Index of the item in the response's output.

    Attributes:
        item: The item. `complete` sets its text.
    """

    def __init__(self, item: OutputMessage | OutputReasoning, part: Part, place: int) -> None:
        self.item = item
        self._part: Part = part
        self._place = place
        self._pieces: list[str] = []

    def opening(self) -> list[Event]:
        """The events before the first text."""
        empty = msgspec.structs.replace(self.item, content=[])
        return [
            OutputItemAdded(output_index=self._place, item=empty),
            ContentPartAdded(
                item_id=self.item.id, output_index=self._place, content_index=0, part=type(self._part)("")
            ),
        ]

    def complete(self, status: Status) -> None:
        """Set the text and the last status of the item."""
        self._part.text = "".join(self._pieces)
        self.item.status = status

    def closing(self, status: Status) -> list[Event]:
        """Complete the item. Returns the last events about the item."""
        self.complete(status)
        return [
            self._done(),
            ContentPartDone(item_id=self.item.id, output_index=self._place, content_index=0, part=self._part),
            OutputItemDone(output_index=self._place, item=self.item),
        ]

    @abstractmethod
    def _done(self) -> Event:
        """The event with the whole text."""


class OpenMessage(OpenItem[OutputText]):
    """A message."""

    def __init__(self, place: int) -> None:
        part = OutputText("", logprobs=[])
        super().__init__(OutputMessage(f"msg_{uuid.uuid4().hex}", "in_progress", [part]), part, place)

    def add(self, text: str, logprobs: list[ChosenLogprob]) -> Event:
        """Add text with the log-probabilities of its tokens. Returns the event about this text."""
        self._pieces.append(text)
        self._part.logprobs += logprobs
        return OutputTextDelta(
            item_id=self.item.id, output_index=self._place, content_index=0, delta=text, logprobs=logprobs
        )

    def _done(self) -> Event:
        part = self._part
        return OutputTextDone(
            item_id=self.item.id, output_index=self._place, content_index=0, text=part.text, logprobs=part.logprobs
        )


class OpenReasoning(OpenItem[ReasoningText]):
    """The reasoning before an answer."""

    def __init__(self, place: int) -> None:
        part = ReasoningText("")
        super().__init__(OutputReasoning(f"rs_{uuid.uuid4().hex}", "in_progress", [part]), part, place)

    def add(self, text: str) -> Event:
        """Add text. Returns the event about this text."""
        self._pieces.append(text)
        return ReasoningTextDelta(item_id=self.item.id, output_index=self._place, content_index=0, delta=text)

    def _done(self) -> Event:
        return ReasoningTextDone(item_id=self.item.id, output_index=self._place, content_index=0, text=self._part.text)
