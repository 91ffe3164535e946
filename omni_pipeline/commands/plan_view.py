"""Draws a placement: the stages on each device, the memory that each stage needs, and whether the deployment fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from omni_pipeline.config.schema import MAIN_HOST
from omni_pipeline.deployment.alternatives import Remedy, told
from omni_pipeline.deployment.host_traffic import HostEdge, heavy_notes
from omni_pipeline.deployment.memory_plan import CachePlan, DevicePlan, Holding, Placement
from omni_pipeline.deployment.replica_rooms import ReplicaRoom, bottleneck, group_requests

WIDTH = 64
"""Number of characters that represent the memory of a whole device."""

_GIB = 1024**3
_KIB = 1024
_COLORS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_FILLS = "█▓"
_FREE, _KEPT = "·", "╳"
_PARTS = ("weights", "cache", "state", "activations", "graphs", "process")
_HEADINGS = ("weights", "KV cache", "state", "peak", "graphs", "process")


def draw(
    placement: Placement,
    found: Sequence[Remedy],
    replicas: Sequence[ReplicaRoom] = (),
    edges: Sequence[HostEdge] = (),
) -> RenderableType:
    """Everything that `plan` shows on a console.

    Args:
        replicas, edges: As in `plan.PlanReport`.
    """
    colors = _colors(placement)
    parts: list[RenderableType] = []
    for device in placement.devices:
        parts += [*_device(device, colors), ""]
    if placement.caches:
        parts += [_caches(placement.caches), ""]
    if replicas:
        parts += [_replicas(replicas), ""]
    if edges:
        parts += [_edges(edges), ""]
    parts += _verdict(placement, found, replicas, heavy_notes(edges))
    return Group(*parts)


def _colors(placement: Placement) -> dict[str, str]:
    stages = dict.fromkeys(holding.stage for device in placement.devices for holding in device.holdings)
    return {stage: _COLORS[index % len(_COLORS)] for index, stage in enumerate(stages)}


def _device(device: DevicePlan, colors: dict[str, str]) -> Iterator[RenderableType]:
    unused = " (unused)" if not device.holdings else ""
    yield Text.from_markup(
        f"[bold]{escape(device.label)}[/]  {_gib(device.memory)} GiB, of which {_gib(device.usable)} are usable and "
        f"{_gib(device.taken)} are used{unused}"
    )
    yield _bar(device, colors)
    if device.holdings:
        yield Padding(_holdings(device.holdings, colors), (0, 0, 0, 2))


def _bar(device: DevicePlan, colors: dict[str, str]) -> Text:
    """A bar that shows the memory of a device: first the stages, then free memory, then reserved memory. The length of
    a stage's block is proportional to the memory of the stage.
    """
    bar = Text()
    scale = WIDTH / max(device.memory, device.taken, 1)
    drawn = end = 0.0
    for index, holding in enumerate(device.holdings):
        end += holding.total * scale
        length, fill = round(end) - round(drawn), _FILLS[index % 2]
        name = f" {holding.stage} " if length > len(holding.stage) + 3 else ""
        bar.append(f"{fill}{name}".ljust(length, fill)[:length], style=colors[holding.stage])
        drawn = end
    for upto, sign in ((device.usable, _FREE), (device.memory, _KEPT)):
        upto_drawn = round(upto * scale)
        bar.append(sign * max(0, upto_drawn - round(drawn)), style="dim")
        drawn = max(drawn, upto_drawn)
    return bar


def _holdings(holdings: Sequence[Holding], colors: dict[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    shared = any(holding.worker != holding.stage for holding in holdings)
    table.add_column("stage", no_wrap=True)
    if shared:
        table.add_column("worker", no_wrap=True)
    for heading in (*_HEADINGS, "all GiB"):
        table.add_column(heading, justify="right")
    for holding in holdings:
        figures = [_gib(getattr(holding, part)) if getattr(holding, part) else "–" for part in _PARTS]
        name = Text(holding.stage, style=colors[holding.stage])
        table.add_row(name, *([holding.worker] if shared else []), *figures, _gib(holding.total))
    return table


def _caches(caches: Sequence[CachePlan]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("KV cache", "KiB per token", "tokens", "tokens per request", "requests at a time"):
        table.add_column(heading, justify="left" if heading == "KV cache" else "right")
    for cache in caches:
        each = (cache.token_bytes + cache.beside_bytes) / _KIB
        figures = (f"{each:g}", f"{cache.tokens:,}", f"{cache.request_tokens:,}", str(cache.requests))
        name = cache.worker if cache.worker.startswith(f"{cache.stage}@") else cache.stage
        table.add_row(name, *figures)
    return table


def _replicas(replicas: Sequence[ReplicaRoom]) -> Table:
    """The replicas of each group, and the number of requests that each replica can process at the same time."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("replica", "host", "runs on"):
        table.add_column(heading, no_wrap=True)
    table.add_column("requests at a time", justify="right")
    table.add_column("of the group", justify="right")
    sums = group_requests(replicas)
    for room in replicas:
        requests = str(room.requests) if room.requests is not None else "–"
        group = str(sums.get(room.group, "–")) if room.replica == 0 else ""
        devices = ", ".join(room.devices) or ("CPU" if not room.host else f"CPU of {room.host}")
        table.add_row(f"{room.group}@{room.replica}", room.host or MAIN_HOST, devices, requests, group)
    return table


def _edges(edges: Sequence[HostEdge]) -> Table:
    """A table of the edges between hosts. For each edge, the table shows how many megabytes the example request sends
    if its prompt is text, and how many if its prompt is media.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("between hosts", no_wrap=True)
    for heading in ("MB: text", "media", "of requests"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("from → to")
    for edge in edges:
        routes = ", ".join(f"{source or MAIN_HOST} → {target or MAIN_HOST}" for source, target in edge.routes)
        sizes = (edge.traffic.text, edge.traffic.media) if edge.traffic is not None else (None, None)
        megabytes = ("unknown" if size is None else f"{size / 10**6:.1f}" for size in sizes)
        table.add_row(f"{edge.source} → {edge.target}", *megabytes, f"{edge.share:.0%}", routes)
    return table


def _verdict(
    placement: Placement, found: Sequence[Remedy], replicas: Sequence[ReplicaRoom], notes: Sequence[str]
) -> Iterator[RenderableType]:
    request = placement.request
    kind = f"requests of {request.prompt_tokens:,} prompt tokens and {request.answer_tokens:,} answer tokens"
    if placement.fits:
        number, bounds = bottleneck(placement, replicas)
        room = f", with room for {number} {kind} at a time" if number is not None else ""
        bound = f" This number is limited by {' and '.join(bounds)}." if number is not None else ""
        yield Text.from_markup(f"[bold green]It fits[/]{room}.{bound}")
        yield from map(Text, (*placement.notes, *notes))
        return
    yield Text.from_markup("[bold red]It does not fit.[/]")
    for problem in placement.problems:
        yield Text(f"  {problem[:1].upper()}{problem[1:]}")
    if found:
        yield Text("Any one of these changes makes it fit:")
        for line in told(found):
            yield Text(f"  {line}")
    elif any(device.index is not None for device in placement.devices):
        yield Text("No other layout on these GPUs fits either.")


def _gib(size: int) -> str:
    """The size in GiB, with enough digits that a small size is not shown as 0."""
    if size >= _GIB // 10 or not size:
        return f"{size / _GIB:.1f}"
    return f"{size / _GIB:.2f}" if size >= _GIB // 100 else "<0.01"
