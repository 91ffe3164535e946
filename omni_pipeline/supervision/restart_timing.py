"""Decides when to restart a worker that has ended, and whether a worker counts as looping. A worker that loops has
ended many times in a row. An operator must then look for the cause.
"""

from __future__ import annotations

from msgspec import Struct

# Number of seconds to wait before the next start. The first value applies to the first end in a row, the second value
# to the second end, and so on. The last value also applies to all further ends.
PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)

# After this number of ends in a row, the worker counts as looping. The worker is still restarted, because the cause may
# disappear.
LOOP = 5

# A worker that has served for this number of seconds is stable. The next end of a stable worker counts as the first end
# in a row.
STABLE_SECONDS = 10.0


class Restarts(Struct):
    """Counts the ends of one worker's processes. All times are from the same monotonic clock.

    Attributes:
        total: Number of ends since the service began.
        in_a_row: Number of ends since the worker was last stable (see `STABLE_SECONDS`).
        ready_since: Time at which the current process became ready; None while it loads.
    """

    total: int = 0
    in_a_row: int = 0
    ready_since: float | None = None

    def ready(self, now: float) -> None:
        """Note that the process has loaded."""
        self.ready_since = now

    def ended(self, now: float) -> float:
        """Note that the process has ended. Returns the number of seconds to wait before the next start."""
        if self.ready_since is not None and now - self.ready_since >= STABLE_SECONDS:
            self.in_a_row = 0
        self.ready_since = None
        self.total += 1
        self.in_a_row += 1
        return PAUSES[min(self.in_a_row, len(PAUSES)) - 1]

    @property
    def looping(self) -> bool:
        """Whether the worker's process has ended at least `LOOP` times in a row, and the worker is not ready now."""
        return self.in_a_row >= LOOP and self.ready_since is None
