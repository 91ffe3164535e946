"""When a worker that has ended is started again, and when its ends are a loop that somebody has to look into."""

from __future__ import annotations

from msgspec import Struct

# Seconds before the next start, by how many ends there have been in a row; the last one holds for all that follow.
PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)

# So many ends in a row are a loop. It is still tried again: the cause may pass.
LOOP = 5

# A worker that has served so long has broken whatever row of ends there was.
STABLE_SECONDS = 10.0


class Restarts(Struct):
    """The ends of one worker's processes; times are those of one monotonic clock.

    Attributes:
        total: Ends since the service began.
        in_a_row: Ends without a stable time between them.
        ready_since: When the process that runs now became ready; None while it loads.
    """

    total: int = 0
    in_a_row: int = 0
    ready_since: float | None = None

    def ready(self, now: float) -> None:
        """The process has loaded."""
        self.ready_since = now

    def ended(self, now: float) -> float:
        """The process has ended; the seconds to wait before the next one."""
        if self.ready_since is not None and now - self.ready_since >= STABLE_SECONDS:
            self.in_a_row = 0
        self.ready_since = None
        self.total += 1
        self.in_a_row += 1
        return PAUSES[min(self.in_a_row, len(PAUSES)) - 1]

    @property
    def looping(self) -> bool:
        """Whether it ends again and again, and does not serve at the moment."""
        return self.in_a_row >= LOOP and self.ready_since is None
