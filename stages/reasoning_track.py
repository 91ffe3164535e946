"""Finds out from the token ids of an answer whether the answer is still in its reasoning. The sampler and the stage
`decode` both use this module, because they must agree on the end of the reasoning.
"""

from __future__ import annotations

from collections.abc import Sequence

from stages.messages import ReasoningForm


class ReasoningTrack:
    """The reasoning of one answer while the answer is generated.

    Reasoning begins in the prompt or with the first token of the answer, and it ends with the first closing token.

    Args:
        form: The markers of the reasoning.

    Attributes:
        tokens: Number of generated tokens that belong to the reasoning, including its markers.
        thoughts: Number of tokens after the opening token, without the closing token.
        open: Whether the next token belongs to the reasoning.
    """

    __slots__ = ("_form", "_read", "open", "thoughts", "tokens")

    def __init__(self, form: ReasoningForm) -> None:
        self._form = form
        self._read = 0
        self.tokens = 0
        self.thoughts = 0
        self.open = form.begun

    @property
    def pending(self) -> bool:
        """True before the first token of the answer, if the answer does not begin inside the reasoning. The first token
        will show whether the answer has any reasoning.
        """
        return not self._read and not self.open

    @property
    def opening_id(self) -> int:
        """Id of the token that begins reasoning."""
        return self._form.opening_id

    @property
    def answer_start(self) -> int:
        """Index of the first token after the reasoning. Valid only if no reasoning is open."""
        return self.tokens

    def follow(self, ids: Sequence[int]) -> None:
        """Track all ids that the answer has so far."""
        for id_ in ids[self._read :]:
            self.read(id_)

    def read(self, id_: int) -> None:
        """Track the next id of the answer."""
        first = not self._read
        self._read += 1
        if not self.open:
            if first and id_ == self._form.opening_id:
                self.open = True
                self.tokens = 1
            return
        self.tokens += 1
        if id_ == self._form.closing_id:
            self.open = False
        else:
            self.thoughts += 1
