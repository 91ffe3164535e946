"""What a check is told: where to compute, how large, and for how long."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setup:
    """The conditions of one check.

    Attributes:
        device: ``cpu`` or ``cuda``.
        small: Whether small sizes and few runs do, to rehearse it.
        directory: For its files.
        until: When it should be done, by `time.monotonic`; what is left to measure then is left out.
    """

    device: str
    small: bool
    directory: Path
    until: float

    @property
    def in_time(self) -> bool:
        return time.monotonic() < self.until

    def runs(self, many: int) -> int:
        """How often to repeat something."""
        return min(many, 3) if self.small else many
