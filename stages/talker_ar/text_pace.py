"""Decides for which answers the thinker goes on writing, by how far each text is ahead of its speech."""

from __future__ import annotations

from stages.messages import TextPace

MOST_AHEAD = 12
"""Number of tokens by which a text that can wait is ahead of its speech. A frame needs a token: this is a second."""

LEAST_AHEAD = 6
"""Number of tokens ahead at which a waiting text is continued."""


class TextOrder:
    """The answers whose texts the thinker has been asked to leave aside."""

    def __init__(self) -> None:
        self._held: set[str] = set()

    def pace(self, ahead: dict[str, int], *, pressed: bool) -> TextPace | None:
        """The advice to the thinker, or None if nothing changes.

        If one text has to go on, all texts with fewer than `MOST_AHEAD` tokens ahead go on, because the thinker's step
        costs little more for many texts than for one.

        Args:
            ahead: Number of tokens ahead, for each answer whose text is incomplete.
            pressed: Whether any utterance has to wait for another. If not, no text has to wait.
        """
        self._held &= ahead.keys()
        hold: list[str] = []
        resume: list[str] = []
        if pressed:
            hold = [
                request_id
                for request_id, tokens in ahead.items()
                if tokens > MOST_AHEAD and request_id not in self._held
            ]
        if not pressed or any(ahead[request_id] <= LEAST_AHEAD for request_id in self._held):
            resume = [request_id for request_id in sorted(self._held) if not pressed or ahead[request_id] <= MOST_AHEAD]
        if not hold and not resume:
            return None
        self._held = self._held.difference(resume).union(hold)
        return TextPace(hold, resume)
