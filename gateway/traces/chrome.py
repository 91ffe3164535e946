"""Writes timelines as files in Chrome's trace event format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Each process is a process there, and each stage a thread of it. On a stage's thread, one slice spans all that the stage
did for the request, and waits and steps lie inside it. Transfers overlap, so they are asynchronous events.
"""

from __future__ import annotations

import contextlib
import datetime
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.traces.timeline import GATEWAY, GATHER, Sum, Traced

SUFFIX = ".trace.json"

_MAIN = "main"


class ChromeFiles:
    """A directory with one file for each request; see `traces.Sink`.

    Args:
        most: Most files kept there, those of earlier runs included; the oldest are removed.
    """

    def __init__(self, directory: Path, most: int) -> None:
        self._directory = directory
        self._most = most
        self._files = deque(sorted(directory.glob(f"*{SUFFIX}")))  # their names begin with their time

    def write(self, timeline: Traced, places: Mapping[str, str]) -> None:
        """Write one file, unless the request was refused before it came to the pipeline."""
        if not timeline.answer_id:
            return
        began = datetime.datetime.fromtimestamp(timeline.began + timeline.epoch, datetime.UTC)
        path = self._directory / f"{began:%Y%m%dT%H%M%S.%f}-{timeline.answer_id}{SUFFIX}"
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(document(timeline, places)))
        part.rename(path)  # whoever sees the file sees all of it
        self._files.append(path)
        while len(self._files) > self._most:
            with contextlib.suppress(FileNotFoundError):
                self._files.popleft().unlink()

    def close(self) -> None:
        """Every file is whole already."""


def document(timeline: Traced, places: Mapping[str, str]) -> dict[str, Any]:
    """The content of a timeline's file.

    Args:
        places: Which process each stage is in.
    """
    began = datetime.datetime.fromtimestamp(timeline.began + timeline.epoch, datetime.UTC)
    return {
        "traceEvents": list(_events(timeline, places)),
        "displayTimeUnit": "ms",
        "otherData": {
            "began": began.isoformat(),
            "trace_id": timeline.trace_id,
            "answer_id": timeline.answer_id,
            "wall_seconds": timeline.ended - timeline.began,
            "covered_seconds": covered(timeline),
            "spans_left_out": timeline.left_out,
            **timeline.figures,
        },
    }


def covered(timeline: Traced) -> float:
    """Seconds of the request in which something was done for it, or was under way, or waited its turn."""
    seconds, until = 0.0, timeline.began
    for begin, end in sorted((span.begin, span.end) for span in timeline.spans if span.name != GATHER):
        end = min(end, timeline.ended)
        if end > until:
            seconds += end - max(begin, until)
            until = end
    return seconds


def _events(timeline: Traced, places: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    by_begin = sorted(timeline.sums, key=lambda track: timeline.sums[track].begin)
    tracks = {GATEWAY: _MAIN} | {track: places.get(track, track) for track in by_begin if track != GATEWAY}
    processes = {name: number for number, name in enumerate(dict.fromkeys(tracks.values()), 1)}
    threads = {track: number for number, track in enumerate(tracks, 1)}
    for name, number in processes.items():
        yield {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": number, "tid": 0, "args": {"sort_index": number}}
    for track, number in threads.items():
        place = {"pid": processes[tracks[track]], "tid": number}
        yield {"ph": "M", "name": "thread_name", **place, "args": {"name": track}}

    def event(track: str, name: str, begin: float, end: float, **more: Any) -> dict[str, Any]:
        place = {"pid": processes[tracks[track]], "tid": threads[track]}
        return {"ph": "X", "name": name, **place, "ts": _micro(begin, timeline), "dur": _span(begin, end), **more}

    yield event(GATEWAY, "request", timeline.began, timeline.ended, args=timeline.figures)
    for track, total in timeline.sums.items():
        if track != GATEWAY:
            yield event(track, track, total.begin, total.end, args=summary(total))
    for number, span in enumerate(timeline.spans):
        if span.name == "transfer":
            name = f"{span.source} → {span.track}"
            common = {"cat": "transfer", "id": number, "name": name, "pid": processes[tracks[span.track]]}
            common["tid"] = threads[span.track]
            yield {"ph": "b", **common, "ts": _micro(span.begin, timeline)}
            yield {"ph": "e", **common, "ts": _micro(span.end, timeline)}
        else:
            args = {"args": {"batch": span.batch}} if span.batch else {}
            yield event(span.track, span.name, span.begin, span.end, **args)


def summary(total: Sum) -> dict[str, Any]:
    """How often and how long everything was on one track."""
    counts = {f"{name}s": count for name, count in total.counts.items()}
    return counts | {f"{name}_seconds": seconds for name, seconds in total.seconds.items()}


def _micro(when: float, timeline: Traced) -> float:
    return round((when - timeline.began) * 1e6, 3)


def _span(begin: float, end: float) -> float:
    return round((end - begin) * 1e6, 3)
