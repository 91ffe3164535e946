"""Writes the report: a Markdown file to paste into an issue. After each step, the file is complete and correct."""

from __future__ import annotations

import enum
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gpu_check.scrub import scrub

MOST_CHARACTERS = 65_536
"""Maximum number of characters that GitHub accepts as the body of an issue."""

_SIGNS = {True: "pass", False: "**FAIL**", None: "told"}
_ROOM = 2_000  # number of characters that the report leaves free for the author of the issue
_DETAIL = 400
_NOTE = "*(shortened: {} characters are left out here)*"
_LEAST = len(_NOTE) + 20  # characters for the note and the fence of a cut section; sections are not cut further
_FENCE = re.compile(r"^(`{3,})", re.MULTILINE)


class State(enum.Enum):
    """State of the run that a report describes."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Check:
    """One result. `passed` is None if the result is not judged: it is only reported, or it was not checked.

    Attributes:
        detail: The finding, which is a number or a text.
        limit: The limit on the number in `detail`.
    """

    name: str
    passed: bool | None
    detail: str = ""
    limit: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with its text and the duration of its step. The text has no secrets, and is folded in the report."""

    heading: str
    text: str
    seconds: float


@dataclass
class Report:
    """The report with the findings so far.

    Attributes:
        path: The report's file. It is written after each step, so that a crash leaves the earlier findings.
        title: The report's heading.
        minutes: Maximum number of minutes for all sections together.
        clock: Returns monotonic seconds.
    """

    path: Path
    title: str
    checks: list[Check] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    minutes: float | None = None
    clock: Callable[[], float] = time.monotonic
    state: State = State.RUNNING
    machine: str = ""
    reason: str = ""
    current: str = ""
    _began: float = field(init=False)
    _section_began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self._section_began = self.clock()

    @property
    def passed(self) -> bool:
        """Whether something was checked, nothing failed, and the run was not interrupted."""
        outcomes = [check.passed for check in self.checks]
        return True in outcomes and False not in outcomes and self.state is not State.STOPPED

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self._began

    def begin(self, name: str) -> None:
        """Announce the step that begins now."""
        self.current = name
        self._section_began = self.clock()
        expected = "" if self.minutes is None else f", of {self.minutes:.0f} at most"
        print(f"── {name}  (after {self.seconds / 60:.0f} min{expected})", flush=True)
        self.write()

    def end(self) -> None:
        """Note that the current step is done."""
        self.current = ""

    def describe(self, machine: str, *checks: Check) -> None:
        """Add the description of the machine, which is shown above the checks and is not folded."""
        self.machine = machine
        self._take(checks)

    def add(self, heading: str, text: str, *checks: Check) -> None:
        """Add a section with its checks."""
        now = self.clock()
        if heading and text:
            self.sections.append(Section(scrub(heading), scrub(text), now - self._section_began))
        self._section_began = now
        self._take(checks)

    def finish(self) -> None:
        """Note that the run is complete."""
        self._end(State.FINISHED, "")

    def stop(self, reason: str) -> None:
        """Note that the run was interrupted."""
        self._end(State.STOPPED, reason + (f", during: {self.current}" if self.current else ""))

    def _end(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self.write()

    def _take(self, checks: Iterable[Check]) -> None:
        for check in checks:
            self.checks.append(check)
            words = f"{check.detail}{f' (at most {check.limit})' if check.limit else ''}"
            print(f"{_SIGNS[check.passed].strip('*'):>8}  {check.name}  {words}", flush=True)
        self.write()

    def write(self) -> None:
        """Write the file atomically: a reader sees either the whole old report or the whole new report."""
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.write_text(self.markdown(), encoding="utf-8")
        os.replace(partial, self.path)

    def markdown(self) -> str:
        """The whole report, short enough for an issue. The longest sections are shortened if necessary."""
        rows = [(check.name, _SIGNS[check.passed], check.detail[:_DETAIL], check.limit) for check in self.checks]
        head = [f"# {self.title}", self.verdict()]
        head += [self.machine] if self.machine else []
        head.append(table(("check", "outcome", "found", "at most"), rows))
        fixed = scrub("\n\n".join(head))
        folds = [_fold(section, "") for section in self.sections]
        room = MOST_CHARACTERS - _ROOM - len(fixed) - sum(len(fold) + 2 for fold in folds)
        texts = _fitted([section.text for section in self.sections], room)
        folds = [_fold(section, text) for section, text in zip(self.sections, texts, strict=True)]
        return "\n\n".join([fixed, *folds]) + "\n"

    def verdict(self) -> str:
        """One line with the result and the duration of the run."""
        failed = sum(check.passed is False for check in self.checks)
        told = sum(check.passed is None for check in self.checks)
        right = sum(check.passed is True for check in self.checks)
        counts = f"{right} checks passed, {failed} failed, {told} only reported"
        after = took(self.seconds)
        if self.state is State.FINISHED and self.passed:
            return f"**Everything that was run passed**, in {after}: {counts}."
        if self.state is State.FINISHED:
            return f"**{'Something failed' if failed else 'Nothing was judged'}**, in {after}: {counts}."
        broken = f"**It was stopped** after {after} ({self.reason})"
        begun = f"**It has not ended**: {after} so far{f', current step: {self.current}' if self.current else ''}"
        return f"{broken if self.state is State.STOPPED else begun}. Until then: {counts}."


def took(seconds: float) -> str:
    """A duration in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _fold(section: Section, text: str) -> str:
    return f"<details><summary>{_plain(section.heading)} ({took(section.seconds)})</summary>\n\n{text}\n\n</details>"


def _fitted(texts: list[str], room: int) -> list[str]:
    """The texts, shortened so that all together have about `room` characters. Only the longest texts are shortened."""
    most = max(map(len, texts), default=0)
    while sum(min(len(text), most) for text in texts) > room and most > _LEAST:
        most = int(most * 0.9)
    return [shortened(text, most) for text in texts]


def shortened(text: str, most: int) -> str:
    """The text up to about `most` characters, cut between lines, with open blocks closed and a note at the end."""
    if len(text) <= most:
        return text
    kept = text[: max(0, most - _LEAST)]
    kept = kept[: kept.rfind("\n")] if "\n" in kept else kept
    fences = _FENCE.findall(kept)
    closing = f"\n{fences[-1]}" if len(fences) % 2 else ""
    return f"{kept}{closing}\n\n{_NOTE.format(len(text) - len(kept))}"


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines: list[tuple[str, ...]] = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def block(text: str) -> str:
    """Text as a literal block."""
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def quoted(text: str) -> str:
    """A model's text, escaped so that it has no effect as Markdown."""
    plain = text.replace("`", "'")
    return f"`{plain}`" if plain.strip() else ""


def _cell(text: str) -> str:
    return _plain(" ".join(text.replace("|", "\\|").split()))


def _plain(text: str) -> str:
    return text.replace("<", "&lt;")
