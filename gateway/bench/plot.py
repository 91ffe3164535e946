"""Draws the results of a run as one SVG file. The file has a panel for each latency. A panel has a bar for each load.
The bar shows p50, p90 and p99.
"""

from __future__ import annotations

from html import escape

from gateway.bench.percentiles import Percentiles
from gateway.bench.report import BenchReport, LevelReport

_PANELS = (
    ("first text, s", "ttft"),
    ("first audio, s", "ttfa"),
    ("whole answer, s", "e2e"),
    ("real-time factor", "rtf"),
)
_WIDTH, _ROW, _LABEL, _TITLE, _NUMBERS = 800, 26, 150, 44, 170
_TO_P99, _TO_P90, _TO_P50 = "#cfe3f5", "#7fb3df", "#2b6ca3"


def draw(report: BenchReport) -> str:
    """The SVG document."""
    parts: list[str] = []
    y = _TITLE
    for title, field in _PANELS:
        bars = [(label, getattr(level, field)) for label, level in _rows(report)]
        known = [(label, bar) for label, bar in bars if bar is not None]
        if known:
            parts += _panel(title, known, y)
            y += _ROW * (len(known) + 2)
    title = f"{report.model}: {report.scenario.input} → {report.scenario.output}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{y}" fill="white"/>',
            f'<text x="10" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
            f'<text x="{_WIDTH - 10}" y="22" text-anchor="end" fill="#666">bars end at p50, p90, p99</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _rows(report: BenchReport) -> list[tuple[str, LevelReport]]:
    """The bars of each panel, as pairs of a label and a report. There is one bar for each load. If the output is mixed,
    there is one bar for each kind of answer at each load.
    """
    rows: list[tuple[str, LevelReport]] = []
    for level in report.levels:
        if level.kinds is None:
            rows.append((str(level.load), level))
        else:
            rows += [(f"{level.load}, {kind}", part) for kind, part in level.kinds.items()]
    return rows


def _panel(title: str, bars: list[tuple[str, Percentiles]], top: int) -> list[str]:
    """The panel of one latency. The scale goes from 0 to the greatest p99 of all loads."""
    scale = (_WIDTH - _LABEL - _NUMBERS) / (max(bar.p99 for _, bar in bars) or 1.0)
    parts = [f'<text x="10" y="{top + 16}" font-weight="bold">{escape(title)}</text>']
    for number, (label, bar) in enumerate(bars, start=1):
        y = top + _ROW * number
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(label)}</text>')
        parts += [
            f'<rect x="{_LABEL}" y="{y + 3}" width="{scale * value:.1f}" height="{_ROW - 8}" fill="{colour}"/>'
            for value, colour in ((bar.p99, _TO_P99), (bar.p90, _TO_P90), (bar.p50, _TO_P50))
        ]
        numbers = " / ".join(format(value, ".3g") for value in (bar.p50, bar.p90, bar.p99))
        parts.append(f'<text x="{_WIDTH - _NUMBERS + 8}" y="{y + 15}" fill="#333">{numbers}</text>')
    return parts
