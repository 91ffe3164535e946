"""Draws the results of a simulation as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from omni_pipeline.simulation.report import ChangeResult, Level, SimulationReport

_BUSY = 0.9
"""A GPU or a stage limits the throughput if it is busy for at least this fraction of the time."""

_BACKLOG = 0.1
"""If the number of open requests grows by more than this fraction of the requests that arrive, the load is too high."""


def draw(report: SimulationReport) -> RenderableType:
    """Everything that `simulate` shows on a console."""
    last = report.levels[-1]
    parts: list[RenderableType] = [_levels(report.levels), "Times are p50 / p90.", "", _uses(last), ""]
    if report.capacity is not None:
        found = report.capacity
        limit = "the largest number that was simulated" if found.fails_at is None else f"{found.fails_at} have gaps"
        parts += [
            f"Gapless capacity: {found.streams} streams ({limit}). All streams together get at most "
            f"{found.audio_seconds_per_second:.1f} seconds of audio in each second.",
            "",
        ]
    if report.changes:
        parts += [_changes(report.changes, last.load, searched=report.capacity is not None), ""]
    parts += [*map(escape, _verdict(last)), escape(f"Laws: {report.laws}"), *map(escape, report.notes)]
    return Group(*parts)


def _levels(levels: Sequence[Level]) -> Table:
    table = _table("load", "answers/s", "audio s/s", "TTFT, ms", "TTFA, ms", "whole, ms", "gapless")
    for level in levels:
        found = level.prediction
        table.add_row(
            level.load,
            f"{found.answers_per_second:.2f}",
            f"{found.audio_seconds_per_second:.1f}",
            *(_times(each.p50, each.p90) for each in (found.ttft, found.ttfa, found.e2e)),
            "–" if found.gapless is None else f"{found.gapless:.0%}",
        )
    return table


def _uses(level: Level) -> Table:
    table = _table("busy", level.load, "mean batch", "where")
    for use in (*level.prediction.gpus, *level.prediction.stages):
        if use.busy or use in level.prediction.gpus:
            table.add_row(use.name, f"{use.busy:.0%}", "" if use.batch is None else f"{use.batch:.1f}", use.where)
    return table


def _changes(results: Sequence[ChangeResult], load: str, *, searched: bool) -> Table:
    """A table with the prediction for each change of the deployment.

    Args:
        searched: Whether the gapless capacity was searched for each change.
    """
    table = _table(f"with {load}", "GPUs", "answers/s", "gain", "TTFA, ms", *(["gapless capacity"] if searched else []))
    for result in results:
        found = result.prediction
        cells = [f"+{result.gpus}", f"{found.answers_per_second:.2f}", f"{result.gain:+.0%}", _time(found.ttfa.p50)]
        if result.capacity is not None:
            cells.append(str(result.capacity.streams))
        table.add_row(result.change, *cells)
    return table


def _verdict(level: Level) -> Iterator[str]:
    use = level.prediction.bottleneck
    if use is None:
        return
    what = f"{use.name} ({use.where})" if use.where else use.name
    if use.busy >= _BUSY:
        yield f"With {level.load}, {what} is the bottleneck: it is busy for {use.busy:.0%} of the time."
    else:
        yield f"With {level.load}, nothing is busy all the time. {what} is busiest, for {use.busy:.0%} of the time."
    if level.prediction.backlog > _BACKLOG:
        yield "Requests arrive faster than they are answered, so the latencies depend on --seconds."


def _times(p50: float | None, p90: float | None) -> str:
    return f"{_time(p50)} / {_time(p90)}"


def _time(seconds: float | None) -> str:
    """A time in milliseconds."""
    return "–" if seconds is None else f"{1000 * seconds:.0f}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name == "where" else "right")
    return table
