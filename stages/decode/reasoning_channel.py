"""Separates the content of an answer from the reasoning before it."""

from __future__ import annotations

from enum import Enum, auto

from stages.decode.channels import Part, Splitter, Voice, begun
from stages.messages import ReasoningForm


class _State(Enum):
    START = auto()  # the text so far is empty, or a prefix of the opening marker
    INSIDE = auto()
    # A call has begun inside the reasoning. If a closing marker follows, the call is part of the reasoning; otherwise
    # it is part of the answer.
    DOUBT = auto()
    OVER = auto()


class ReasoningSplitter:
    """The splitter of a text that may begin with reasoning.

    The result does not depend on the pieces in which the text arrives. It equals the result of SGLang's parser for the
    complete text. Reasoning is never spoken.

    Args:
        form: How the model marks its reasoning.
        answer: The splitter of the text after the reasoning.
        separate: Whether reasoning is kept out of the content. If so, the markers are neither reasoning nor content. If
            not, the reasoning and its markers are content.
    """

    def __init__(self, form: ReasoningForm, answer: Splitter, *, separate: bool = True) -> None:
        self._form = form
        self._answer = answer
        self._separate = separate
        self._begun = form.begun
        self._state = _State.START
        self._held = ""
        self._doubted: list[str] = []  # the characters before `_held`, in the state DOUBT

    @property
    def ended(self) -> bool:
        return self._state is _State.OVER and self._answer.ended

    def feed(self, text: str) -> list[Part]:
        parts: list[Part] = []
        self._held += text
        while self._advance(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        parts: list[Part] = []
        if self._state is _State.INSIDE or (self._state is _State.START and self._begun):
            self._think(parts, len(self._held))
        rest = "".join(self._doubted) + self._held
        self._state, self._held = _State.OVER, ""
        return parts + self._answer.feed(rest) + self._answer.finish()

    def _advance(self, parts: list[Part]) -> bool:
        """Make one step. Returns whether another step may be possible before more text arrives."""
        match self._state:
            case _State.START:
                return self._find_opening(parts)
            case _State.INSIDE:
                return self._find_closing(parts)
            case _State.DOUBT:
                return self._decide(parts)
            case _State.OVER:
                text, self._held = self._held, ""
                if text:
                    parts += self._answer.feed(text)
                return False

    def _find_opening(self, parts: list[Part]) -> bool:
        opening = self._form.opening
        if self._held.startswith(opening):  # a model may repeat the opening marker
            self._mark(parts, len(opening))
            self._begun = True
            return True
        if opening.startswith(self._held):
            return False
        self._state = _State.INSIDE if self._begun else _State.OVER
        return True

    def _find_closing(self, parts: list[Part]) -> bool:
        closing, call = self._form.closing, self._form.interrupting
        end = self._held.find(closing)
        cut = self._held.find(call, 0, end if end >= 0 else None) if call else -1
        if cut >= 0:
            self._think(parts, cut)
            self._state = _State.DOUBT
            return True
        if end < 0:
            waits = max(begun(self._held, closing), begun(self._held, call) if call else 0)
            self._think(parts, len(self._held) - waits)
            return False
        self._close(parts, end)
        return True

    def _decide(self, parts: list[Part]) -> bool:
        closing = self._form.closing
        end = self._held.find(closing)
        if end >= 0:
            doubted, self._doubted = "".join(self._doubted), []
            self._held = doubted + self._held
            self._close(parts, len(doubted) + end)
            return True
        searched = max(0, len(self._held) - len(closing) + 1)
        self._doubted.append(self._held[:searched])
        self._held = self._held[searched:]
        return False

    def _close(self, parts: list[Part], end: int) -> None:
        """End the reasoning. The first `end` held characters belong to the reasoning, and a closing marker follows."""
        self._think(parts, end)
        self._mark(parts, len(self._form.closing))
        self._state = _State.OVER

    def _think(self, parts: list[Part], length: int) -> None:
        """Turn the first `length` held characters into reasoning."""
        self._cover(parts, length, self._held[:length])

    def _mark(self, parts: list[Part], length: int) -> None:
        """Handle a marker, which is the first `length` held characters. It is neither spoken nor reasoning."""
        self._cover(parts, length, "")

    def _cover(self, parts: list[Part], length: int, reasoning: str) -> None:
        text, self._held = self._held[:length], self._held[length:]
        if not length:
            return
        if self._separate:
            parts.append(Part(length, reasoning=reasoning, voice=Voice.SILENT))
        else:
            parts.append(Part(length, text, voice=Voice.SILENT))
