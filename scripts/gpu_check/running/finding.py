"""Writes and reads findings: one line of JSON for each check."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, FAIL = "ok", "FAIL"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: Name of the check.
        ok: Whether the outcome is right.
        figures: The measured values, which JSON can represent. Their names include the unit.
    """

    check: str
    ok: bool
    figures: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The finding as a line, without the line's end."""
        return json.dumps({"check": self.check, "result": OK if self.ok else FAIL, "figures": self.figures})

    @classmethod
    def read(cls, line: str) -> Finding | None:
        """The finding that was printed as `line`, or None if the line is something else."""
        try:
            content = json.loads(line)
            return cls(content["check"], content["result"] == OK, content["figures"])
        except (ValueError, TypeError, KeyError):
            return None


class Log:
    """Prints findings as they arrive, and keeps them in a file.

    Args:
        path: The file, which is overwritten; None for no file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.count = self.failed = 0
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")

    def add(self, finding: Finding) -> None:
        self.count += 1
        self.failed += not finding.ok
        print(finding.line(), flush=True)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(finding.line() + "\n")

    @property
    def status(self) -> int:
        """The exit status: 0 if there are findings and all of them are right."""
        return 0 if self.count and not self.failed else 1


def report(finding: Finding) -> None:
    """Print a finding of this child process. Its standard output must contain nothing but findings."""
    sys.stdout.write(finding.line() + "\n")
    sys.stdout.flush()
