"""The clock of a listener who plays streamed speech: when the speech that has been sent will have been played.

Each stage that speaks decides by this clock which utterances go first. A player starts with the first chunk, and then
needs a codec frame every 80 ms. The *lead* of an utterance is the length of the speech that has been made and not been
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
    """A listener's player, as the vocoder sees it: it plays a chunk when the chunk is sent, or after the chunk before.

    Attributes:
        since: The time, by `time.monotonic`, at which the player would have started if it had never been silent; None
            before the first chunk. So the player needs frame i, counted from 0, at `since` + i · 80 ms.
    """

    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since: float | None = None

    def dry_at(self, frames: int) -> float:
        """The time at which the first `frames` frames have been played. The player must have started."""
        assert self.since is not None
        return self.since + FRAME_SECONDS * frames

    def receive(self, now: float, frames: int) -> bool:
        """Note that a chunk after the first `frames` frames is sent. Returns whether `since` has changed, because the
        player starts or has been silent.
        """
        if self.since is not None and self.dry_at(frames) >= now:
            return False
        self.since = now - FRAME_SECONDS * frames
        return True
