"""Counts the parts into which a JPEG 2000 codestream divides its picture.

A decoder makes tables of a few hundred bytes for each part. A header of only 60 bytes may define one part for each
pixel.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from msgspec import Struct

from omni_pipeline.wire.tensor import Buffer

# The beginning of a codestream, with its first marker, which contains the size.
_CODESTREAM = re.compile(rb"\xff\x4f\xff\x51")
_SIZE = struct.Struct(">HHIIIIIIIIH")
_CODING, _COMPONENT_CODING, _TILE_PART, _TILE_DATA = 0x52, 0x53, 0x90, 0x93

_LARGEST_PRECINCT = 15  # exponent (base 2) of a precinct's size if the codestream states no size


class Codestream(Struct, frozen=True):
    """The size of a codestream's picture, and the number of its parts.

    Attributes:
        width, height: The size of the picture.
        tiles: Number of tiles.
        precincts: Number of precincts. A precinct is a rectangle of one component of one tile, at one resolution.
        precincts_at_once: Number of precincts of one tile. A decoder keeps all of these precincts in memory.
        packets: Number of packets. Each quality layer has one packet for each precinct.
        blocks: Number of code blocks.
    """

    width: int
    height: int
    tiles: int
    precincts: int
    precincts_at_once: int
    packets: int
    blocks: int


class _Coding(Struct, frozen=True):
    """How a component of a tile is divided into parts. Sizes are powers of two, and are given as exponents."""

    layers: int
    levels: int
    block: int
    precincts: bytes


def find_codestreams(data: Buffer) -> Iterator[Codestream]:
    """Every codestream in a file. The boxes around a codestream are ignored, because they may contain false sizes."""
    view = memoryview(data).cast("B")
    for found in _CODESTREAM.finditer(view):
        at = found.end()
        if at + _SIZE.size <= len(view):
            yield _read_codestream(view, at)


def _read_codestream(view: memoryview, at: int) -> Codestream:
    _, _, right, bottom, left, top, tile_width, tile_height, _, _, components = _SIZE.unpack_from(view, at)
    width, height = max(right - left, 0), max(bottom - top, 0)
    tile_width, tile_height = min(tile_width, right) or 1, min(tile_height, bottom) or 1
    tiles = -(-width // tile_width) * -(-height // tile_height)
    at_once = packets = blocks = 0
    for coding in _codings(view, at):
        here = components * _count_precincts(coding, tile_width, tile_height)
        at_once = max(at_once, here)
        packets = max(packets, tiles * here * coding.layers)
        blocks = max(blocks, tiles * components * (tile_width * tile_height >> coding.block))
    return Codestream(width, height, tiles, tiles * at_once, at_once, packets, blocks)


def _codings(view: memoryview, at: int) -> Iterator[_Coding]:
    """Yields every division into parts. The headers of the codestream and of its tiles define these divisions. `at` is
    the position after the first marker.
    """
    layers = 1
    marker, tile_part, tile_end = 0, 0, 0
    while at + 2 <= len(view):
        (size,) = struct.unpack_from(">H", view, at)
        content = view[at + 2 : at + size]
        if marker == _CODING and len(content) >= 10:
            layers = int.from_bytes(content[2:4], "big")
            yield _coding(layers, content[5:], precincts=content[0] & 1)
        elif marker == _COMPONENT_CODING and len(content) >= 7:
            yield _coding(layers, content[2:], precincts=content[1] & 1)
        elif marker == _TILE_PART and len(content) >= 8:
            tile_end = tile_part + int.from_bytes(content[2:6], "big")
        at += size
        if view[at : at + 2] == bytes([0xFF, _TILE_DATA]):
            if tile_end <= at:
                return
            at = tile_end
        if at + 4 > len(view) or view[at] != 0xFF or size < 2:
            return
        marker, tile_part = view[at + 1], at
        at += 2


def _coding(layers: int, fields: memoryview, *, precincts: int) -> _Coding:
    """Reads the division of a component, beginning with the number of levels."""
    return _Coding(layers, min(fields[0], 32), fields[1] + fields[2] + 4, bytes(fields[5:]) if precincts else b"")


def _count_precincts(coding: _Coding, width: int, height: int) -> int:
    count = 0
    for resolution in range(coding.levels + 1):
        shrunk = coding.levels - resolution
        across, down = -(-width >> shrunk) or 1, -(-height >> shrunk) or 1
        size = coding.precincts[resolution] if resolution < len(coding.precincts) else 0xFF
        count += (-(-across >> (size & _LARGEST_PRECINCT)) or 1) * (-(-down >> (size >> 4)) or 1)
    return count
