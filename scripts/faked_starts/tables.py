"""Writes Markdown tables about the starts on fake GPUs: the layouts that fit, and SGLang's arguments for their
engines.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from faked_starts.data import STAGES, Arguments, Built
from faked_starts.layouts import CARDS, FakedStart
from faked_starts.resolution import Started


def fitting(starts: Iterable[FakedStart]) -> str:
    """A table of the layouts. It has one row for each combination of a layout, a kind of checkpoint, and a range of GPU
    counts with the same outcome.
    """
    names = " | ".join(CARDS)
    lines = [f"| layout | weights | GPUs | {names} |", "|---|---|---|" + "---|" * len(CARDS)]
    by_layout: dict[tuple[str, str], list[FakedStart]] = {}
    for start in starts:
        by_layout.setdefault((start.layout, start.kind), []).append(start)
    for (layout, kind), found in sorted(by_layout.items(), key=lambda item: item[0][0]):
        lines += [f"| `{layout}` | {kind} | {gpus} | {cells} |" for gpus, cells in _same(found)]
    return "\n".join(lines)


def arguments(started: Sequence[Started], model: Callable[[str, str], Built]) -> str:
    """A table of SGLang's arguments. It has one row for each pair of an engine and a kind of checkpoint. If the
    arguments differ between cards, the pair has several rows, and each row lists its cards.

    Args:
        model: Returns the built model of a stage for a kind of checkpoint.
    """
    lines = [
        "| engine | weights | on | attention | page | prefill chunk | captured decode steps | experts by | KV cache |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for stage, kind in itertools.product(STAGES, dict.fromkeys(each.start.kind for each in started)):
        here = [each for each in started if (each.engine.stage, each.start.kind) == (stage, kind)]
        rows: dict[str, set[str]] = {}
        for each in here:
            rows.setdefault(_chosen(each.arguments, model(stage, kind)), set()).add(each.start.card)
        for row, cards in rows.items():
            on = "all" if cards == set(CARDS) else ", ".join(card for card in CARDS if card in cards)
            lines.append(f"| {stage} | {kind} | {on} | {row} |")
    return "\n".join(lines)


def _same(starts: list[FakedStart]) -> Iterator[tuple[str, str]]:
    """Groups the numbers of GPUs that have the same outcome on each kind of GPU. Yields each group with its outcome."""
    rows: dict[str, list[int]] = {}
    for count in dict.fromkeys(start.gpus for start in starts):
        by_card = {start.card: start for start in starts if start.gpus == count}
        if all(start.refused for start in by_card.values()):
            continue
        rows.setdefault(" | ".join(_cell(by_card[card]) for card in CARDS), []).append(count)
    for cells, counts in rows.items():
        yield ", ".join(map(str, counts)), cells


def _cell(start: FakedStart) -> str:
    if start.placement is None:
        return "–"
    if not start.fits:
        return "**no**"
    caches = [start.placement.cache(stage) for stage in STAGES]
    return " + ".join(f"{cache.tokens:,}" for cache in caches if cache is not None)


def _chosen(arguments: Arguments, built: Built) -> str:
    steps = ", ".join(map(str, arguments.decode_graphs)) or "none"
    cells = [
        arguments.attention_backend,
        str(arguments.page_size),
        str(arguments.chunked_prefill_size),
        steps,
        built.moe_runner or built.experts,
        built.kv_cache_dtype,
    ]
    return " | ".join(cells)
