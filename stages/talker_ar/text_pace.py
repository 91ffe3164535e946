"""Decides for which answers the thinker continues the text. The decision depends on how far each text is ahead of its
speech.
"""

from __future__ import annotations

from stages.messages import TextPace

MOST_AHEAD = 12
"""A text can wait if it is more than this number of tokens ahead of its speech. A frame uses one token and lasts 80 ms,
so 12 tokens are about one second of speech.
"""

LEAST_AHEAD = 6
"""A waiting text is continued when it is at most this number of tokens ahead of its speech."""


class TextOrder:
    """Decides which texts the thinker pauses and continues, and remembers which texts are paused."""

    def __init__(self) -> None:
        self._held: set[str] = set()

    def pace(self, ahead: dict[str, int], *, pressed: bool) -> TextPace | None:
        """The texts that the thinker should pause now, and the texts that it should continue now. None if nothing
        changes.

        The thinker's step takes only a little more time for many texts than for one. So if one waiting text has to
        continue, all waiting texts that are at most `MOST_AHEAD` tokens ahead continue with it.

        Args:
            ahead: Number of tokens ahead, for each answer whose text is incomplete.
            pressed: Whether any utterance has to wait for another utterance. If not, all texts are continued.
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
