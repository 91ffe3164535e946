"""The report: checks with their outcome, and sections of Markdown, written anew after each step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_SIGNS = {True: "pass", False: "**FAIL**", None: "not run"}


@dataclass(frozen=True)
class Check:
    """One thing that is right or not; `passed` is None where it was not looked at."""

    name: str
    passed: bool | None
    detail: str = ""


@dataclass
class Report:
    """What has been found so far.

    Attributes:
        path: Where it is kept; written after each step, so that a crash leaves what was found before.
        title: Its heading.
    """

    path: Path
    title: str
    checks: list[Check] = field(default_factory=list)
    sections: list[tuple[str, str]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and something was looked at."""
        outcomes = [check.passed for check in self.checks]
        return True in outcomes and False not in outcomes

    def add(self, heading: str, text: str, *checks: Check) -> None:
        """A section, and the checks that it tells of."""
        self.sections.append((heading, text))
        self.checks += checks
        self.path.write_text(self.markdown(), encoding="utf-8")
        for check in checks:
            print(f"{_SIGNS[check.passed].strip('*'):>8}  {check.name}  {check.detail}", flush=True)

    def markdown(self) -> str:
        """The whole report."""
        rows = [f"| {check.name} | {_SIGNS[check.passed]} | {_cell(check.detail)} |" for check in self.checks]
        verdict = "Everything that was run passed." if self.passed else "**Something failed**, or nothing was run."
        parts = [f"# {self.title}", verdict, "\n".join(["| check | outcome | |", "|---|---|---|", *rows])]
        parts += [f"## {heading}\n\n{text}" for heading, text in self.sections if text]
        return "\n\n".join(parts) + "\n"


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines: list[tuple[str, ...]] = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def block(text: str) -> str:
    """Text as it is."""
    return f"```text\n{text.rstrip()}\n```"


def quoted(text: str) -> str:
    """What a model said, so that nothing in it means anything where the report is read."""
    plain = text.replace("`", "'")
    return f"`{plain}`" if plain.strip() else ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
