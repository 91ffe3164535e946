"""Learns how much speech must be ready before an utterance starts to play.

A prediction decides when an utterance starts. It assumes that frames and chunks come at a steady pace. In reality, the
pace varies: the talker computes the prompt of another request, or another program uses the processor. The
necessary reserve cannot be computed from the delays of single frames, because the next frames often make up for a
delay. So the reserve is learned from experience: the reserve grows when a chunk of a new utterance comes too late, and
shrinks with time. Players of voice over IP adapt their playout delay in a similar way. Here, the sender adapts the
delay, because the sender knows the load.
"""

from __future__ import annotations

import math

from stages.playback import FRAME_SECONDS

LATE_SECONDS = 0.08
"""A chunk counts as late if it comes this number of seconds after its player has run out of sound. A listener hardly
notices shorter silences, so they are no reason to start later.
"""

GROWTH_SECONDS = FRAME_SECONDS
"""The reserve grows by this number of seconds after a late chunk."""

PAUSE_SECONDS = 1.0
"""After it has grown, the reserve does not grow again for this number of seconds. Chunks that are late at about the
same time have the same cause, so they count only once.
"""

MOST_SECONDS = 5 * FRAME_SECONDS
"""Upper limit of the reserve, in seconds. A larger reserve would delay the start of utterances so much that listeners
would prefer a rare silence.
"""

HALF_LIFE_SECONDS = 20.0
"""The reserve shrinks to half in this number of seconds. Near the capacity of a server, late chunks keep the reserve
large. With fewer streams, late chunks are rare, and a longer half-life would delay many answers because of one of them.
"""


class StartReserve:
    """The reserve, in seconds of speech. The module `chunk_order` predicts how much speech must be ready before an
    utterance starts. The reserve must be ready in addition to this speech. Times are from `time.monotonic`.
    """

    def __init__(self) -> None:
        self._seconds, self._at = 0.0, -math.inf

    def seconds(self, now: float) -> float:
        """The reserve in seconds: 0 while all chunks arrive in time."""
        return float(self._seconds * 0.5 ** ((now - self._at) / HALF_LIFE_SECONDS))

    def grow(self, now: float) -> None:
        """Record that a chunk of a new utterance came after the utterance's player had run out of sound."""
        if now - self._at >= PAUSE_SECONDS:
            self._seconds, self._at = min(self.seconds(now) + GROWTH_SECONDS, MOST_SECONDS), now
