"""Estimates how many streamed spoken answers the pipeline can generate at once so that all of them play without a gap.

The number of seconds of sound that the pipeline generates per second is its *pace*. A listener needs one second of
sound per second. So the pace is about the number of answers that can be played at once. All sound passes through the
main process, so this module can measure the pace without reports from the stages:

- While answers are being generated, the pipeline works as fast as it can. So the pipeline can keep the pace that it
  had in the last seconds. With more answers, the pace may be higher, because a step costs only a little more for many
  answers than for one answer. So the *capacity* is the greatest pace so far.
- When a player runs out of sound, the pipeline generates less sound than its listeners need. So the pipeline cannot
  work faster at the moment. The current pace becomes the new capacity, even if the capacity was larger before.

Another answer may begin if the capacity is sufficient for one more listener and no player will soon run out of sound.
If no other answer is being generated, an answer may always begin.
"""

from __future__ import annotations

import math

MEMORY_SECONDS = 2.0
"""Sound that arrived this number of seconds ago counts 1/e times as much as sound that arrives now."""

LEAST_SECONDS = 0.5
"""The pace is unknown until answers have been made for this number of seconds."""

MOST_LOAD = 0.9
"""Listeners may use at most this fraction of the capacity. The rest of the capacity is a reserve for changes of the
pace.
"""

FIRST_VOICES = 4
"""Maximum number of answers at once while the pace is unknown."""

DRY_SECONDS = 0.05
"""A player with fewer seconds of sound left will soon run out of sound."""


class Voice:
    """One streamed spoken answer, from its admission to its last sound.

    Attributes:
        lasts_until: Time at which the player will have played all sound that has arrived; None before the first sound.
    """

    __slots__ = ("lasts_until",)

    def __init__(self) -> None:
        self.lasts_until: float | None = None


class VoiceLoad:
    """The answers that are being generated, and the estimated capacity. Times are in seconds, on any clock.

    Attributes:
        capacity: Seconds of sound per second; 0 while it is unknown.
    """

    def __init__(self) -> None:
        self.capacity = 0.0
        self._voices: set[Voice] = set()
        self._sound = 0.0  # seconds of sound; older sound counts less
        self._time = 0.0  # seconds in which this sound was generated; older time counts less
        self._last = 0.0

    @property
    def voices(self) -> int:
        """Number of answers that are being generated."""
        return len(self._voices)

    def begin(self, now: float) -> Voice:
        """Record that an answer begins."""
        self._advance(now)
        voice = Voice()
        self._voices.add(voice)
        return voice

    def hear(self, voice: Voice, seconds: float, now: float) -> None:
        """Record that more sound of an answer has arrived. `seconds` is its length."""
        self._advance(now)
        self._sound += seconds
        voice.lasts_until = max(voice.lasts_until or now, now) + seconds
        if self._time >= LEAST_SECONDS:
            pace = self._sound / self._time
            self.capacity = pace if self._dry(now) else max(self.capacity, pace)

    def end(self, voice: Voice, now: float) -> None:
        """Record that no further sound of an answer will arrive. May be called more than once for an answer."""
        self._advance(now)
        self._voices.discard(voice)

    def has_room(self, now: float) -> bool:
        """Whether one more answer can begin now. The result is True if all answers, including the new answer, will
        probably play without a gap. If no answer is being generated, the result is always True.
        """
        if not self._voices:
            return True
        most = FIRST_VOICES if not self.capacity else MOST_LOAD * self.capacity
        return len(self._voices) + 1 <= most and not self._dry(now)

    def _dry(self, now: float) -> bool:
        return any(voice.lasts_until is not None and voice.lasts_until - now < DRY_SECONDS for voice in self._voices)

    def _advance(self, now: float) -> None:
        """Update the measurement to the time `now`. Time in which no answer was generated does not count."""
        if self._voices:
            kept = math.exp((self._last - now) / MEMORY_SECONDS)
            self._sound *= kept
            self._time = self._time * kept + (1 - kept) * MEMORY_SECONDS
        self._last = now
