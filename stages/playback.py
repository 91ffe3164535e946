"""Models the player of a client that plays streamed speech. The model computes when the player will have played all
speech that has been sent.

The speech stages use this model to decide which utterances go first. A player starts with the first chunk, and then
needs a codec frame every 80 ms. The *lead* of an utterance is the length of the speech that has been made but not yet
played. If the lead reaches zero, the listener hears a silence.
"""

from __future__ import annotations

FRAME_SECONDS = 0.08
"""Length of the sound of one codec frame."""

SHORT_SECONDS = 0.4
"""An utterance with a smaller lead is short of speech: its listener will soon hear a silence."""

AMPLE_SECONDS = 1.3
"""An utterance with a greater lead can wait while another utterance is short of speech."""


class Player:
    """A model of a listener's player. The model assumes that the player plays a chunk as soon as two conditions are
    true: the chunk has been sent, and the chunk before it has been played.

    Attributes:
        since: The time, by `time.monotonic`, at which the player started, plus the length of all silences that the
            listener has heard since then. None before the first chunk. So the player needs frame i, counted from 0, at
            `since` + i · 80 ms.
    """

    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since: float | None = None

    def dry_at(self, frames: int) -> float:
        """The time at which the player has played this number of frames. The player must have started."""
        assert self.since is not None
        return self.since + FRAME_SECONDS * frames

    def receive(self, now: float, frames: int) -> bool:
        """Note that a chunk is sent now. `frames` is the number of frames that were sent before this chunk. Returns
        whether `since` has changed. `since` changes when the player starts, and when a chunk arrives after the player
        has run out of sound.
        """
        if self.since is not None and self.dry_at(frames) >= now:
            return False
        self.since = now - FRAME_SECONDS * frames
        return True
