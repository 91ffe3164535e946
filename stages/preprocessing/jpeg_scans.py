"""Counts the passes that a JPEG decoder makes over a picture, from the markers of the file.

A progressive JPEG is decoded scan by scan, and each scan visits all pixels of its components. A scan needs only about
ten bytes, so a small file may keep a decoder busy for a long time.
"""

from __future__ import annotations

import re
import struct

from omni_pipeline.wire.tensor import Buffer

# The markers that decoders process. In pixel data, an FF byte is followed by 00, or it begins a restart marker (D0 to
# D7). Decoders skip bytes that are not markers, and so does this search.
_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xef\xfe])")
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # C4 and CC contain tables, and C8 is reserved


def scanned_samples(data: Buffer, *, start: int = 0, end: int | None = None, all_pictures: bool = False) -> int:
    """The number of samples that all scans together visit. A scan visits every sample of each of its components.

    Args:
        start, end: The part of `data` that the decoder gets.
        all_pictures: Whether the decoder continues after the end of the first picture, as FFmpeg does.
    """
    view = memoryview(data).cast("B")[:end]
    samples: dict[int, int] = {}  # the number of samples of each component, by the component's id
    total = 0
    at = start
    while found := _MARKER.search(view, at):
        marker, at = view[found.end() - 1], found.end()
        if marker == _END and not all_pictures:
            break
        if marker in (_START, _END):
            continue
        if at + 2 > len(view):
            break
        content = view[at + 2 : at + struct.unpack_from(">H", view, at)[0]]
        at += 2 + len(content)
        if marker in _FRAMES:
            samples = _component_samples(content)
        elif marker == _SCAN and content:
            components = content[1 : 1 + 2 * content[0] : 2]
            total += sum(samples.get(component, max(samples.values(), default=0)) for component in components)
    return total


def _component_samples(frame: memoryview) -> dict[int, int]:
    if len(frame) < 6:
        return {}
    height, width = struct.unpack_from(">HH", frame, 1)
    components = [(frame[at], frame[at + 1] >> 4 or 1, frame[at + 1] & 15 or 1) for at in range(6, len(frame) - 2, 3)]
    widest = max((across for _, across, _ in components), default=1)
    tallest = max((down for _, _, down in components), default=1)
    return {
        component: -(-width * across // widest) * -(-height * down // tallest) for component, across, down in components
    }
