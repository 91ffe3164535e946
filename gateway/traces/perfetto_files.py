"""Writes timelines as files in Chrome's trace event format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

A file shows each of our processes as a process, and each stage as a thread of its process. On a stage's thread, one
long slice covers the time from the stage's first work on the request to its last work on the request. The waits and
steps of the stage lie inside that slice. Transfers overlap, so they are asynchronous events.
"""

from __future__ import annotations

import contextlib
import datetime
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from gateway.traces.request_timeline import GATEWAY, GATHER, TRANSFER, Sum, Traced

SUFFIX = ".trace.json"
_PARTIAL = ".trace.part"

_MAIN = "main"


class ChromeFiles:
    """A directory with one file for each request; see `traces.Sink`.

    Args:
        most: Maximum number of files in the directory, including files of earlier runs; the oldest files are removed.
        most_bytes: Maximum size of all these files together.
    """

    def __init__(self, directory: Path, most: int, most_bytes: int) -> None:
        self._directory = directory
        self._most = most
        self._most_bytes = most_bytes
        # The name of a file begins with the time, so the first name in sorted order is the oldest file. If a server
        # ends while it writes, a partial file remains.
        found = sorted(path for suffix in (SUFFIX, _PARTIAL) for path in directory.glob(f"*{suffix}"))
        self._files = deque((path, _size(path)) for path in found)
        self._bytes = sum(size for _, size in self._files)
        self._remove_oldest()

    def write(self, timeline: Traced, places: Mapping[str, str]) -> None:
        """Write one file. If the request was refused before it reached the pipeline, write nothing."""
        if not timeline.answer_id:
            return
        began = datetime.datetime.fromtimestamp(timeline.began + timeline.epoch, datetime.UTC)
        path = self._directory / f"{began:%Y%m%dT%H%M%S.%f}-{timeline.answer_id}{SUFFIX}"
        content = msgspec.json.encode(document(timeline, places))
        if len(content) > self._most_bytes:
            raise ValueError(
                f"the trace file would have {len(content)} bytes, which is more than the setting 'trace.total_bytes' "
                "allows"
            )
        self._remove_oldest(len(content))
        part = self._directory / path.name.replace(SUFFIX, _PARTIAL)
        try:
            part.write_bytes(content)
            part.rename(path)  # the renaming ensures that a reader never sees a part of a file
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._files.append((path, len(content)))
        self._bytes += len(content)

    def close(self) -> None:
        """Do nothing: every file is complete already."""

    def _remove_oldest(self, coming: int | None = None) -> None:
        """Remove the oldest files until no limit is exceeded. If `coming` is given, also make room for another file of
        this size, in bytes.
        """
        most = self._most - (coming is not None)
        while self._files and (len(self._files) > most or self._bytes + (coming or 0) > self._most_bytes):
            path, size = self._files.popleft()
            path.unlink(missing_ok=True)
            self._bytes -= size


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def document(timeline: Traced, places: Mapping[str, str]) -> dict[str, Any]:
    """The content of the file for a timeline.

    Args:
        places: Name of the process that runs each stage.
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
    """Number of seconds of the request that are covered by at least one span for work, transfer or waiting in a queue.
    ``gather`` spans do not count.
    """
    seconds, until = 0.0, timeline.began
    for begin, end in sorted((span.begin, span.end) for span in timeline.spans if span.name != GATHER):
        end = min(end, timeline.ended)
        if end > until:
            seconds += end - max(begin, until)
            until = end
    return seconds


def _events(timeline: Traced, places: Mapping[str, str]) -> Iterator[_Event]:
    by_begin = sorted(timeline.sums, key=lambda track: timeline.sums[track].begin)
    tracks = {GATEWAY: _MAIN} | {track: places.get(track, track) for track in by_begin if track != GATEWAY}
    processes = {name: number for number, name in enumerate(dict.fromkeys(tracks.values()), 1)}
    at = {track: (processes[place], number) for number, (track, place) in enumerate(tracks.items(), 1)}
    for name, number in processes.items():
        yield _About("process_name", number, 0, {"name": name})
        yield _About("process_sort_index", number, 0, {"sort_index": number})
    for track, place in at.items():
        yield _About("thread_name", *place, {"name": track})

    began = timeline.began
    yield _Slice("request", *at[GATEWAY], 0.0, _micro(timeline.ended - began), timeline.figures)
    for track, total in timeline.sums.items():
        if track != GATEWAY:
            yield _Slice(
                track, *at[track], _micro(total.begin - began), _micro(total.end - total.begin), summary(total)
            )
    for number, span in enumerate(timeline.spans):
        process, thread = at[span.track]
        begin = _micro(span.begin - began)
        if span.name == TRANSFER:
            name = f"{span.source} → {span.track}"
            yield _Begin(name, process, thread, begin, number)
            yield _FlowEnd(name, process, thread, _micro(span.end - began), number)
        else:
            args = {"batch": span.batch} if span.batch else None
            yield _Slice(span.name, process, thread, begin, _micro(span.end - span.begin), args)


class _About(Struct, tag_field="ph", tag="M", gc=False):
    """A metadata event that names a process or a thread, or sets the position of a process in the view."""

    name: str
    pid: int
    tid: int
    args: dict[str, Any]


class _Slice(Struct, tag_field="ph", tag="X", omit_defaults=True, gc=False):
    """An event on one thread, with its start and its duration."""

    name: str
    pid: int
    tid: int
    ts: float
    dur: float
    args: dict[str, Any] | None = None


class _Begin(Struct, tag_field="ph", tag="b", gc=False):
    """The start of an asynchronous event. The event ends with the `_FlowEnd` that has the same id. Asynchronous events
    may overlap.
    """

    name: str
    pid: int
    tid: int
    ts: float
    id: int
    cat: str = TRANSFER


class _FlowEnd(_Begin, tag="e", gc=False):
    """The end of an asynchronous event. The event began with the `_Begin` that has the same id."""


_Event: TypeAlias = _About | _Slice | _Begin


def summary(total: Sum) -> dict[str, Any]:
    """The sums of one track as one object. For each name of a span, the object contains the number of spans with this
    name, and the sum of their durations in seconds.
    """
    counts = {f"{name}s": count for name, count in total.counts.items()}
    return counts | {f"{name}_seconds": seconds for name, seconds in total.seconds.items()}


def _micro(seconds: float) -> float:
    return int(seconds * 1e9) / 1000  # `round` takes three times as long as `int`
