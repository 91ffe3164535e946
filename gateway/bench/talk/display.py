"""Shows the results of conversations in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.bench.talk.report import TalkLevel, TalkReport

_MILLI = 1000.0
_BUSY = 0.7  # if the bench keeps more than this number of cores busy on average, its results are doubtful
_ROWS = (
    ("end of speech → speech_stopped", "stopped"),
    ("end of speech → first audio", "first_audio"),
    ("speech_stopped → first audio", "after_stop"),
    ("interruption → speech_started", "noticed"),
    ("interruption → last audio", "last_sound"),
    ("interruption → response.done", "ended"),
)


def show_talk(report: TalkReport, console: Console) -> None:
    """Print the results of the measurement with each number of sessions. All times are in milliseconds."""
    console.print(
        f"[bold]{escape(report.model)}[/] at {escape(report.url)}: spoken turns; {report.silence_ms} ms of silence end "
        f"a turn; {report.interrupted_share:.0%} of the answers are interrupted; all times are in ms",
        highlight=False,
        soft_wrap=True,
    )
    for level in report.levels:
        console.print(
            f"[bold]{level.sessions} session{'' if level.sessions == 1 else 's'}[/]: {level.answered} of {level.turns} "
            f"turns answered, {level.interruptions} interruptions",
            highlight=False,
        )
        console.print(_table(level))
        for note in _notes(level):
            console.print(f"  {note}", highlight=False, soft_wrap=True)


def _table(level: TalkLevel) -> Table:
    table = Table()
    table.add_column("")
    for title in ("count", "mean", "p50", "p90", "p99", "max"):
        table.add_column(title, justify="right")
    for title, field in _ROWS:
        found = getattr(level, field)
        if found is not None:
            values = (found.mean, found.p50, found.p90, found.p99, found.max)
            table.add_row(title, str(found.count), *(f"{_MILLI * value:.0f}" for value in values))
    return table


def _notes(level: TalkLevel) -> list[str]:
    notes = []
    if level.continuous is not None:
        notes.append(f"{level.continuous:.0%} of the answers played continuously")
    if level.cached_share is not None:
        notes.append(f"{level.cached_share:.0%} of the prompts' tokens came from the prefix cache")
    if level.split:
        notes.append(f"[yellow]{level.split} utterances were divided into several turns[/]")
    if level.client_cpu > _BUSY:
        notes.append(
            f"[yellow]the bench itself used {level.client_cpu:.0%} of a CPU core and may have delayed events[/]"
        )
    for code, error in level.errors.items():
        notes.append(f"[red]{error.count} × {escape(code)}[/]: {escape(error.message)}")
    return notes
