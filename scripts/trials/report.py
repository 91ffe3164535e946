"""Writes the report on a trial, as Markdown for people and as JSON for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct


class PromiseCheck(Struct, frozen=True):
    """A promise, the observation, and whether the promise was kept."""

    promise: str
    seen: str
    kept: bool


class TrialReport(Struct):
    """The report on a whole trial.

    Attributes:
        title: The name of the trial.
        command: The command that runs the trial again.
        checks: The promises that were checked.
        tables: Further results by title. The first row of a table is its header.
        details: All data of the trial, for programs.
    """

    title: str
    command: str
    checks: list[PromiseCheck]
    tables: dict[str, list[list[str]]]
    details: dict[str, Any]

    @property
    def good(self) -> bool:
        return all(check.kept for check in self.checks)

    def markdown(self) -> str:
        """The report as Markdown, for people."""
        verdicts = [[check.promise, check.seen, "kept" if check.kept else "BROKEN"] for check in self.checks]
        parts = [f"# {self.title}", f"`{self.command}`", _table([["promise", "seen", ""], *verdicts])]
        for title, rows in self.tables.items():
            parts += [f"## {title}", _table(rows)]
        return "\n\n".join(parts) + "\n"

    def write(self, directory: Path) -> None:
        """Write ``report.md`` and ``report.json``."""
        (directory / "report.md").write_text(self.markdown(), encoding="utf-8")
        (directory / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))


def memory_table(before: dict[str, int], after: dict[str, int]) -> list[list[str]]:
    """A table of the memory of each process, and of the sum of these memories. The arguments are in bytes."""
    sums = {"together": [sum(before.values()), sum(after.values())]}
    rows = sums | {name: [before[name], after.get(name, 0)] for name in sorted(before)}
    return [
        ["process", "before", "after"],
        *([name, *(f"{size / 2**20:.0f} MiB" for size in sizes)] for name, sizes in rows.items()),
    ]


def _table(rows: list[list[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
