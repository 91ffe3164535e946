"""Shows a bench run in the terminal: a progress bar during the run, tables after the run."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from gateway.bench.capacity import Capacity
from gateway.bench.percentiles import Percentiles
from gateway.bench.report import BenchReport, LevelReport, Load

_MILLI = 1000.0
# If the bench itself keeps more than this number of cores busy on average, its results are doubtful.
_BUSY = 0.7
# If more than this fraction of the prompts' tokens comes from the prefix cache, the server has seen the prompts before.
# The chat template, which all prompts begin with, is a smaller fraction.
_CACHED = 0.25
# The measurements that have percentiles: title, field of `LevelReport`, factor and format.
_ROWS = (
    ("first text (TTFT), ms", "ttft", _MILLI, ".1f"),
    ("first audio (TTFA), ms", "ttfa", _MILLI, ".1f"),
    ("whole answer (E2E), ms", "e2e", _MILLI, ".1f"),
    ("between texts, ms", "inter_token", _MILLI, ".2f"),
    ("between audio chunks, ms", "inter_chunk", _MILLI, ".1f"),
    ("real-time factor", "rtf", 1.0, ".3f"),
    ("audible silences, ms", "underruns", _MILLI, ".0f"),
)


class ProgressBar:
    """A `plan.BenchProgress` on a console; as a context manager, removes the bar at the end."""

    def __init__(self, console: Console) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, what: str, total: int) -> None:
        self._bar.reset(self._task, description=what, total=total)

    def advance(self) -> None:
        self._bar.advance(self._task)

    def note(self, result: str) -> None:
        self._bar.console.print(result, highlight=False, soft_wrap=True)


def show(report: BenchReport, console: Console) -> None:
    """Print the report of every level."""
    scenario = report.scenario
    length = f"{scenario.tokens} tokens"
    if scenario.speech and scenario.audio_frames is not None:
        length += f" + {scenario.audio_frames} frames"
    console.print(
        f"[bold]{escape(report.model)}[/] at {escape(report.url)}: {scenario.prompt_words} words"
        f"{'' if scenario.input == 'text' else f' + {scenario.input}'} → {scenario.output}, "
        f"{'at most ' if scenario.natural else ''}{length}",
        highlight=False,
        soft_wrap=True,
    )
    if report.capacity is not None:
        _show_capacity(report.capacity, report.levels, console)
        return
    for level in report.levels:
        console.print(f"[bold]{level.load}[/]: {level.completed} of {level.requests} answered", highlight=False)
        for kind, part in (level.kinds or {}).items():
            console.print(f"  {kind}: {part.completed} of {part.requests} answered", highlight=False)
            console.print(_table(part))
        if level.completed and level.kinds is None:
            console.print(_table(level))
        for line in _notes(level):
            console.print(f"  {line}", highlight=False, soft_wrap=True)


def _show_capacity(capacity: Capacity, levels: list[LevelReport], console: Console) -> None:
    table = Table()
    for title in ("streams", "without a gap", "s of audio/s", "TTFA p50, ms", "p90", "E2E p50, ms", "p90"):
        table.add_column(title, justify="right")
    for trial, level in zip(capacity.trials, levels, strict=True):
        table.add_row(
            str(trial.streams),
            f"{trial.gapless} of {trial.answers}",
            f"{trial.audio_seconds_per_second:.2f}",
            *_median_and_p90(level.ttfa),
            *_median_and_p90(level.e2e),
        )
    console.print(table)
    for line in _capacity_lines(capacity):
        console.print(line, highlight=False, soft_wrap=True)
    for level in levels:
        for note in _troubles(level):
            console.print(f"  {level.load}: {note}", highlight=False, soft_wrap=True)


def _capacity_lines(capacity: Capacity) -> list[str]:
    share = f"{100 * capacity.gapless_share:g} %"
    end = (
        "the search ended at --max-streams"
        if capacity.fails_at is None
        else f"{capacity.fails_at} streams are too many"
    )
    at_least = "at least " if capacity.fails_at is None else ""
    lines = [
        f"[bold]gapless capacity: {at_least}{Load(capacity.streams)}[/] "
        f"(at least {share} of the answers play without a gap; {end})"
    ]
    sound = f"{capacity.loudest_audio_seconds_per_second:.2f} s at most, with {Load(capacity.loudest)}"
    if capacity.audio_seconds_per_second is not None:
        sound = f"{capacity.audio_seconds_per_second:.2f} s at the capacity; {sound}"
    lines.append(f"audio received per second: {sound}")
    if capacity.ratio is not None:
        lines.append(f"[bold]capacity divided by the largest amount of audio per second: {capacity.ratio:.2f}[/]")
    elif not capacity.saturated:
        lines.append("[yellow]with more streams, the server may make more audio: raise --max-streams to find out[/]")
    return lines


def _median_and_p90(found: Percentiles | None) -> tuple[str, str]:
    """Cells in milliseconds; empty if nothing was measured."""
    return ("", "") if found is None else (f"{_MILLI * found.p50:.0f}", f"{_MILLI * found.p90:.0f}")


def _table(level: LevelReport) -> Table:
    table = Table()
    table.add_column("")
    for title in ("mean", "p50", "p90", "p99", "max"):
        table.add_column(title, justify="right")
    for title, field, factor, style in _ROWS:
        found: Percentiles | None = getattr(level, field)
        if found is not None:
            values = (found.mean, found.p50, found.p90, found.p99, found.max)
            table.add_row(title, *(format(factor * value, style) for value in values))
    return table


def _notes(level: LevelReport) -> list[str]:
    together = f"{level.requests_per_second:.2f} req/s · {level.tokens_per_second:.1f} tokens/s"
    if level.audio_seconds_per_second:
        together += f" · {level.audio_seconds_per_second:.2f} s of audio/s"
    if level.continuous is not None:
        together += f" · {level.continuous:.0%} played continuously"
    return [together, *_troubles(level), *_against_reference(level)]


def _troubles(level: LevelReport) -> list[str]:
    """Warnings about results that are doubtful."""
    notes = []
    if level.client_cpu is not None and level.client_cpu > _BUSY:
        notes.append(
            f"[yellow]the bench itself used {level.client_cpu:.0%} of a CPU core and may have delayed answers[/]"
        )
    if level.cached_share is not None and level.cached_share > _CACHED:
        notes.append(
            f"[yellow]{level.cached_share:.0%} of the prompts' tokens came from the prefix cache, so the server has "
            "seen prompts before: choose another --seed[/]"
        )
    if level.wrong_length:
        notes.append(f"[yellow]{level.wrong_length} answers do not have the requested length[/]")
    for code, error in level.errors.items():
        why = f" ({escape(error.explanation)})" if error.explanation else ""
        notes.append(f"[red]{error.count} × {escape(code)}[/]: {escape(error.message)}{why}")
    return notes


def _against_reference(level: LevelReport) -> list[str]:
    against = level.baseline
    if against is None:
        return []
    if against.total_ratio is None or against.reference_seconds is None:
        return ["[yellow]no round was complete, so the server cannot be compared with the baseline[/]"]
    ratios = [f"[bold]{against.total_ratio:.2f}× for all answers[/]"]
    if against.first_text_ratio is not None:
        ratios.append(f"{against.first_text_ratio:.1f}× until the first text")
    if against.first_audio_ratio is not None:
        ratios.append(f"{against.first_audio_ratio:.1f}× until the first audio")
    alone = _MILLI * against.reference_seconds.p50
    notes = [
        f"speed compared with Hugging Face, which answers one request at a time: {', '.join(ratios)} "
        f"(median of {against.rounds} rounds; Hugging Face takes {alone:.1f} ms for one answer)"
    ]
    if against.reference_wrong_length:
        notes.append(
            f"[yellow]{against.reference_wrong_length} answers of Hugging Face do not have the requested length[/]"
        )
    return notes
