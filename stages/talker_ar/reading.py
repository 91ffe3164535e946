"""Tracks a text that is read aloud: the passages that wait, and the number of frames that the client's limit still
allows.
"""

from __future__ import annotations

from collections import deque

from stages.messages import TalkerPrompt


class Reading:
    """A text that is read aloud, passage by passage.

    Args:
        prompt: The talker's prompt. Its `max_tokens` limits all passages together.

    Attributes:
        paused: Whether the next passage waits until the client has received most of the speech before it.
        passages: Number of passages that have begun.
        tokens: Number of text tokens that have arrived, including those of the user's turn.
        tokens_left: Maximum number of talker tokens for the next passage; None if the client has set no limit.
    """

    def __init__(self, prompt: TalkerPrompt) -> None:
        self.paused = False
        self.passages = 0
        self.tokens: int = prompt.ids.shape[0]
        self.tokens_left = prompt.speech.talker.max_tokens
        self._waiting: deque[list[int]] = deque()
        self._complete = False

    @property
    def exhausted(self) -> bool:
        """Whether the limit allows no further frame. A further frame needs two tokens: the token of the frame, and the
        token that ends the utterance.
        """
        return self.tokens_left is not None and self.tokens_left < 2

    def take(self, ids: list[int], *, last: bool) -> None:
        """Add a passage that has arrived."""
        self._waiting.append(ids)
        self.tokens += len(ids)
        self._complete = last

    def next_passage(self) -> list[int] | None:
        """The ids of the passage that begins now. None if the passage has not arrived or has to wait."""
        if self.paused or not self._waiting:
            return None
        self.passages += 1
        return self._waiting.popleft()

    def end_passage(self, frames: int) -> bool:
        """Note that a passage has ended after `frames` frames. Returns whether it was the last passage. If not, the
        next passage is paused.
        """
        if self.tokens_left is not None:
            self.tokens_left -= frames
        self.paused = True
        return self._complete and not self._waiting
