"""Finds the sizes of the AV1 pictures in an AVIF file. The decoder uses these sizes, even if other parts of the file
claim other sizes.

An AVIF file may contain a grid of pictures, and several pictures may use the same bytes of the file. The decoder
decodes each picture in the size of its AV1 sequence header, and scales it to the size that the file claims.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from omni_pipeline.wire.tensor import Buffer
from stages.preprocessing.budget import PACKET_WORK, DecodingBudget

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6  # types of AV1's units (OBU)


# Reading one OBU of AV1 is charged as `_UNIT_WORK` units of work (see `budget`). Copying `_COPIES_PER_WORK` bytes is
# charged as one unit of work.
_UNIT_WORK, _COPIES_PER_WORK = 64, 32


def find_frames(data: Buffer, budget: DecodingBudget) -> Iterator[tuple[int, int]]:
    """Width and height of each AV1 frame of each picture item. If the file is damaged, the search ends at the damage.

    Args:
        budget: The work of the search is charged to this budget. This is needed because a file can make the search
            visit the same bytes very often.
    """
    view = memoryview(data).cast("B")
    boxes = dict(_boxes(view))
    meta = dict(_boxes(boxes.get(b"meta", view[:0])[4:]))
    if b"iloc" not in meta or b"iinf" not in meta:
        return
    pictures = _av1_items(meta[b"iinf"])
    for item, in_meta, extents in _locations(meta[b"iloc"], budget):
        if item in pictures:
            source = meta.get(b"idat", view[:0]) if in_meta else view
            parts = [source[start : start + size if size else None] for start, size in extents]
            budget.charge(sum(map(len, parts)) // _COPIES_PER_WORK)
            yield from _frames(b"".join(parts), budget)


def _boxes(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of each box."""
    at = 0
    while at + 8 <= len(view):
        size, kind = struct.unpack_from(">I4s", view, at)
        head = 8
        if size == 1 and at + 16 <= len(view):
            (size,), head = struct.unpack_from(">Q", view, at + 8), 16
        end = at + size if size else len(view)
        if end < at + head:
            return
        yield kind, view[at + head : end]
        at = end


def _av1_items(iinf: memoryview) -> set[int]:
    """The ids of the items that are AV1 pictures."""
    items = set()
    for kind, entry in _boxes(iinf[8 if iinf[:1] != b"\0" else 6 :]):
        if kind == b"infe" and entry:
            at = 8 if entry[0] >= 3 else 6
            if entry[at + 2 : at + 6] == b"av01":
                items.add(int.from_bytes(entry[4:at], "big"))
    return items


def _locations(iloc: memoryview, budget: DecodingBudget) -> Iterator[tuple[int, bool, list[tuple[int, int]]]]:
    """Yields for each item: the item's id, whether the item's bytes are in the meta box, and start and size of each
    part of the item.
    """
    fields = _Fields(iloc)
    version = fields.take(1)
    fields.take(3)
    sizes = fields.take(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version in (1, 2) else 0
    for _ in range(fields.take(4 if version == 2 else 2)):
        item = fields.take(4 if version == 2 else 2)
        method = fields.take(2) & 15 if version in (1, 2) else 0
        fields.take(2)
        base = fields.take(base_size)
        extents = []
        for _ in range(fields.take(2)):
            budget.charge(PACKET_WORK)
            fields.take(index_size)
            extents.append((base + fields.take(offset_size), fields.take(length_size)))
        yield item, method == 1, extents
        if fields.at > len(iloc):
            return


class _Fields:
    """Reads integers one after the other."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.at = 0

    def take(self, size: int) -> int:
        self.at += size
        return int.from_bytes(self._view[self.at - size : self.at], "big")


def _frames(stream: bytes, budget: DecodingBudget) -> Iterator[tuple[int, int]]:
    """The size of each frame of an AV1 stream."""
    at = 0
    size = (0, 0)
    while at < len(stream):
        budget.charge(_UNIT_WORK)
        kind, extended, sized = stream[at] >> 3 & 15, stream[at] >> 2 & 1, stream[at] >> 1 & 1
        at += 1 + extended
        length = shift = 0
        while sized and at < len(stream):
            byte = stream[at]
            at += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128 or shift > 56:
                break
        if kind == _SEQUENCE_HEADER:
            size = _sequence_size(_Bits(stream[at : at + 256]))
        elif kind in (_FRAME_HEADER, _FRAME):
            yield size
        if not sized:
            return
        at += length


class _Bits:
    """Reads bits, the most significant bit first. Bits beyond the end are zero."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data.ljust(256, b"\0"), "big")
        self._left = 8 * 256

    def take(self, count: int) -> int:
        self._left = max(self._left - count, 0)
        return self._value >> self._left & (1 << count) - 1

    def take_unary(self) -> int:
        """Read a number in AV1's variable-length code uvlc."""
        zeros = 0
        while zeros < 32 and self._left and not self.take(1):
            zeros += 1
        return self.take(zeros)


def _sequence_size(bits: _Bits) -> tuple[int, int]:
    """The maximum width and height of the frames, from AV1's sequence header."""
    bits.take(4)  # profile, still picture
    if bits.take(1):  # reduced header
        bits.take(5)
    else:
        _skip_operating_points(bits)
    across, down = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(across) + 1, bits.take(down) + 1


def _skip_operating_points(bits: _Bits) -> None:
    has_model, delay_bits = 0, 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            bits.take_unary()
        has_model = bits.take(1)
        if has_model:
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:  # the level; a level above 7 is followed by a tier
            bits.take(1)
        if has_model and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_delay and bits.take(1):
            bits.take(4)
