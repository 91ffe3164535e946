"""Defines the parameters of a check: its device, sizes and time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setup:
    """The conditions of one check.

    Attributes:
        device: ``cpu`` or ``cuda``.
        small: Whether to use small sizes and few runs, for a trial.
        directory: Directory for the check's files.
        until: Time by which the check should end, on the clock `time.monotonic`; later measurements are left out.
    """

    device: str
    small: bool
    directory: Path
    until: float

    @property
    def in_time(self) -> bool:
        return time.monotonic() < self.until

    def runs(self, many: int) -> int:
        """The number of repetitions of a measurement."""
        return min(many, 3) if self.small else many
