"""Decides which utterances the talker continues. These are the utterances whose listeners soon need speech, and other
utterances that can join the same steps at little cost.

The *lead* of an utterance is the length of its speech that has been made but not yet played (see `stages.playback`).
While no listener is short of speech and the vocoder keeps up, every utterance runs as fast as it can. In all other
cases, an utterance with a large lead can wait, so that the processors work for other utterances. It can wait if its
lead is larger than the *sufficient lead*. The sufficient lead is `BEHIND_SECONDS` while the vocoder is behind, and
`AMPLE_SECONDS` otherwise. An utterance that can wait is never the reason for a step. But a step takes only a little
more time for many utterances than for one. So when a step is made for other utterances, an utterance that can wait
joins the step if its lead is at most `JOIN_SECONDS` above the sufficient lead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from stages.playback import AMPLE_SECONDS, FRAME_SECONDS, SHORT_SECONDS

BEHIND_SECONDS = 1.0
"""The lead, in seconds, that is sufficient while the vocoder is behind. It is longer than a full chunk (0.64 s)."""

JOIN_SECONDS = 0.48
"""When a step is made for other utterances, an utterance that can wait joins the step if its lead is at most this
number of seconds above the sufficient lead.
"""

URGENT_SECONDS = 0.25
"""An utterance with a lead below this number of seconds is continued before new prompts are computed, because a prompt
takes longer.
"""


PRESSING_SECONDS = 0.9
"""An utterance with a lead below this number of seconds is continued before the thinker's step in the same process.
This number is larger than the length of a chunk (0.64 s). The reason is that the latest frames may still wait for the
rest of their chunk, so the player may run out of sound before the lead is zero.
"""


class _Voice:
    """One utterance.

    Attributes:
        streamed: Whether a client plays the utterance while it is made.
        made: Number of frames that the talker has begun.
        since: See `playback.Player.since`.
        paused: Whether the talker waits until the client has received more of the speech.
    """

    __slots__ = ("made", "paused", "since", "streamed")

    def __init__(self, *, streamed: bool) -> None:
        self.streamed = streamed
        self.made = 0
        self.paused = False
        self.since: float | None = None


class VoiceOrder:
    """Stores the leads of all utterances, and decides which utterances come next. Times are from `time.monotonic`.

    Args:
        just_in_time: Whether utterances may wait for each other.

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
        self._voices[request_id].paused = False

    def pause(self, request_id: str) -> None:
        """Note that a passage of the utterance has ended. The last step made no frame, because it only found the end of
        the passage. Until the next frame, no other utterance has to wait for this one.
        """
        self._voices[request_id].made -= 1
        self._voices[request_id].paused = True

    def play_since(self, request_id: str, since: float) -> None:
        """Store the time from `playback.Player.since` for an utterance. Ignores unknown ids."""
        voice = self._voices.get(request_id)
        if voice is not None:
            voice.since = since

    def forget(self, request_id: str) -> None:
        self._voices.pop(request_id, None)

    def lead(self, request_id: str, now: float) -> float:
        """The utterance's lead in seconds. If no client plays the utterance while it is made, the lead is 0, so the
        utterance never waits for another.
        """
        return self._lead(self._voices[request_id], now)

    def sufficient_lead(self, now: float) -> float:
        """The lead in seconds that is enough at this moment: an utterance with a larger lead can wait. Infinite if no
        utterance has to wait.
        """
        if not self._just_in_time:
            return math.inf
        if self.behind:
            return BEHIND_SECONDS
        short = any(
            voice.streamed and not voice.paused and self._lead(voice, now) < SHORT_SECONDS
            for voice in self._voices.values()
        )
        return AMPLE_SECONDS if short else math.inf

    def next_step(self, request_ids: Iterable[str], now: float, *, running: bool) -> list[str]:
        """Selects the utterances that take part in the next step.

        Args:
            request_ids: The utterances whose next frame can be made.
            running: Whether a step is made in any case for other utterances.
        """
        sufficient = self.sufficient_lead(now)
        leads = {request_id: self.lead(request_id, now) for request_id in request_ids}
        if not running and not any(lead <= sufficient for lead in leads.values()):
            return []
        return [request_id for request_id, lead in leads.items() if lead <= sufficient + JOIN_SECONDS]

    def wakes_at(self, request_ids: Iterable[str], now: float) -> float | None:
        """The time at which `next_step` will return utterances if nothing else happens before. None if there is no such
        time.
        """
        sufficient = self.sufficient_lead(now)
        surplus = min((self.lead(request_id, now) - sufficient for request_id in request_ids), default=None)
        return None if surplus is None else now + max(surplus, 0.0)

    def urgent(self, request_ids: Iterable[str], now: float, *, least: float = URGENT_SECONDS) -> bool:
        """Whether one of the utterances is being played and has a lead of less than `least` seconds."""
        return self._just_in_time and any(
            voice.since is not None and self._lead(voice, now) < least
            for voice in (self._voices[request_id] for request_id in request_ids)
        )

    def _lead(self, voice: _Voice, now: float) -> float:
        if not voice.streamed:
            return 0.0
        made = FRAME_SECONDS * voice.made
        if voice.since is None:
            # Before the player has started, the lead only grows. It is possible that the talker is never informed that
            # the player has started. So before the start, the lead is limited to `AMPLE_SECONDS`. With a larger lead,
            # the utterance might wait for ever for another utterance that is short of speech.
            return min(made, AMPLE_SECONDS)
        return voice.since + made - now
