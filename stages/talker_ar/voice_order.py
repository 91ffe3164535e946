"""Decides which utterances the talker continues: those whose listeners need it, and those that can join them cheaply.

While nobody is short of speech and the vocoder keeps up, every utterance runs as fast as it can. Otherwise an utterance
whose lead is ample waits, so that the processors work for the others. A step costs little more for many utterances
than for one. So a step is not made for utterances that can wait, but if one is made, they join it unless they are
further ahead than `JOIN_SECONDS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from stages.playback import AMPLE_SECONDS, FRAME_SECONDS, SHORT_SECONDS

BEHIND_SECONDS = 1.0
"""The lead, in seconds, that suffices while the vocoder is behind: two full chunks of frames."""

JOIN_SECONDS = 0.48
"""An utterance joins a step that is made for others if its lead is at most this much more than suffices."""

URGENT_SECONDS = 0.25
"""An utterance with a smaller lead is continued before new prompts are computed, because a prompt takes longer."""


class _Voice:
    """One utterance.

    Attributes:
        streamed: Whether somebody listens while it is made.
        made: Number of frames that the talker has begun.
        since: See `playback.Player.since`.
    """

    __slots__ = ("made", "since", "streamed")

    def __init__(self, *, streamed: bool) -> None:
        self.streamed = streamed
        self.made = 0
        self.since: float | None = None


class VoiceOrder:
    """The leads of all utterances, and what follows from them. Times are by `time.monotonic`.

    Args:
        just_in_time: False if no utterance waits for another.

    Attributes:
        behind: Whether the vocoder has more frames waiting than it can decode soon.
    """

    def __init__(self, *, just_in_time: bool = True) -> None:
        self._just_in_time = just_in_time
        self._voices: dict[str, _Voice] = {}
        self.behind = False

    def begin(self, request_id: str, *, streamed: bool) -> None:
        self._voices[request_id] = _Voice(streamed=streamed)

    def make_frame(self, request_id: str) -> None:
        """Note that the talker makes the next frame of an utterance."""
        self._voices[request_id].made += 1

    def play_since(self, request_id: str, since: float) -> None:
        """Note when an utterance's player would have started. Ignores unknown ids."""
        voice = self._voices.get(request_id)
        if voice is not None:
            voice.since = since

    def forget(self, request_id: str) -> None:
        self._voices.pop(request_id, None)

    def lead(self, request_id: str, now: float) -> float:
        """The utterance's lead in seconds. Without a listener it is 0: such an utterance never waits for another."""
        return self._lead(self._voices[request_id], now)

    def sufficient_lead(self, now: float) -> float:
        """The lead, in seconds, with which an utterance can wait at this moment; infinite if nobody has to wait."""
        if not self._just_in_time:
            return math.inf
        if self.behind:
            return BEHIND_SECONDS
        short = any(voice.streamed and self._lead(voice, now) < SHORT_SECONDS for voice in self._voices.values())
        return AMPLE_SECONDS if short else math.inf

    def next_step(self, request_ids: Iterable[str], now: float, *, running: bool) -> list[str]:
        """Of the utterances whose next frame can be made, those whose frames are to be made in the next step.

        Args:
            running: Whether the next step is made in any case, for other utterances.
        """
        sufficient = self.sufficient_lead(now)
        leads = {request_id: self.lead(request_id, now) for request_id in request_ids}
        if not running and not any(lead <= sufficient for lead in leads.values()):
            return []
        return [request_id for request_id, lead in leads.items() if lead <= sufficient + JOIN_SECONDS]

    def wakes_at(self, request_ids: Iterable[str], now: float) -> float | None:
        """The time at which `next_step` will not be empty any more, if nothing else happens; None if there is none."""
        sufficient = self.sufficient_lead(now)
        surplus = min((self.lead(request_id, now) - sufficient for request_id in request_ids), default=None)
        return None if surplus is None else now + max(surplus, 0.0)

    def urgent(self, request_ids: Iterable[str], now: float) -> bool:
        """Whether the player of one of the utterances will soon be silent."""
        return self._just_in_time and any(
            voice.since is not None and self._lead(voice, now) < URGENT_SECONDS
            for voice in (self._voices[request_id] for request_id in request_ids)
        )

    def _lead(self, voice: _Voice, now: float) -> float:
        if not voice.streamed:
            return 0.0
        made = FRAME_SECONDS * voice.made
        if voice.since is None:
            # The lead shrinks only when the player starts, which the talker might not learn. So it is never more than
            # ample: otherwise, the utterance might wait for ever for one that is short of speech.
            return min(made, AMPLE_SECONDS)
        return voice.since + made - now
