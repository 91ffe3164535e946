"""Charges the cost of decoding a picture with Pillow (see `budget`). The cost depends on the size of the picture, and
also on the structure of the file.

The cost is computed before decoding, because Pillow decodes a picture in one call. This call cannot be stopped.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from itertools import pairwise

from PIL import BmpImagePlugin, IcoImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from omni_pipeline.wire.tensor import Buffer
from stages.preprocessing.avif_frames import find_frames
from stages.preprocessing.budget import PACKET_WORK, DecodingBudget, pass_work
from stages.preprocessing.jpeg2000_parts import find_codestreams
from stages.preprocessing.jpeg_scans import scanned_samples

SizeCheck = Callable[[int, int], None]


class _Mark(bytes, Enum):
    """The first bytes of a file."""

    PNG = b"\x89PNG"
    ICO = b"\0\0\1\0"


# Chunks of a PNG with compressed text or a colour profile. Pillow unpacks at most a fixed number of bytes of each
# chunk. Unpacking four bytes takes as long as decoding one pixel.
_PACKED_CHUNKS = re.compile(rb"iCCP|zTXt|iTXt")
_UNPACKING_WORK = PngImagePlugin.MAX_TEXT_CHUNK // 4

# The work that is charged for the parts of a JPEG 2000 picture. `_PRECINCT_WORK` is for each precinct of the picture.
# `_HELD_PRECINCT_WORK` is additional work for each precinct of one tile, because a decoder has the tables of a whole
# tile in memory. `_EMPTY_PACKET_WORK` is for each packet, even if it is empty. `_BLOCK_WORK` is for each code block.
_PRECINCT_WORK, _HELD_PRECINCT_WORK, _EMPTY_PACKET_WORK, _BLOCK_WORK = 64, 1024, 8, 64

_TIFF_JPEG, _TIFF_OLD_JPEG = 7, 6


def charge_picture(image: Image.Image, data: Buffer, budget: DecodingBudget, check_size: SizeCheck) -> None:
    """Charge for decoding `image`, which Pillow has opened from `data` and has not decoded.

    Args:
        check_size: Raises an error if a picture of the given width and height is too large.

    Raises:
        OmniError: The error that `budget` or `check_size` raises.
    """
    _charge_tiles(image, budget)
    match image.format:
        case "JPEG" | "MPO":
            budget.charge(pass_work(scanned_samples(data)))
        case "TIFF":
            assert isinstance(image, TiffImagePlugin.TiffImageFile)
            _charge_tiff(image, data, budget, check_size)
        case "JPEG2000":
            _charge_jpeg2000(data, budget, check_size)
        case "AVIF":
            _charge_avif(data, budget, check_size)


def charge_opening(data: Buffer, budget: DecodingBudget, check_size: SizeCheck) -> None:
    """Charge for the parts that Pillow decodes while it opens a file. The arguments are those of `charge_picture`.

    These parts are the compressed chunks of a PNG, and the largest picture of an ICO.
    """
    match bytes(memoryview(data)[:4]):
        case _Mark.PNG:
            _charge_packed_chunks(data, budget)
        case _Mark.ICO:
            _charge_icon(data, budget, check_size)


def _charge_icon(data: Buffer, budget: DecodingBudget, check_size: SizeCheck) -> None:
    file = io.BytesIO(data)
    # If the file is damaged, this function stops at the damaged place. Pillow will fail at the same place, before
    # Pillow decodes anything.
    with suppress(OSError, ValueError, SyntaxError, IndexError, struct.error):
        largest = IcoImagePlugin.IcoFile(file).entry[0]
        file.seek(largest.offset)
        is_png = file.read(8) == PngImagePlugin._MAGIC
        file.seek(largest.offset)
        if is_png:
            _charge_packed_chunks(memoryview(data)[largest.offset :], budget)
            image: Image.Image = PngImagePlugin.PngImageFile(file)
            check_size(*image.size)
        else:
            image = BmpImagePlugin.DibImageFile(file)
            check_size(image.width, image.height // 2)  # the height counts the picture and its mask
        _charge_tiles(image, budget)


def _charge_packed_chunks(data: Buffer, budget: DecodingBudget) -> None:
    """Charge for the compressed chunks of a PNG that contain no pixels."""
    for _ in _PACKED_CHUNKS.finditer(data):
        budget.charge(_UNPACKING_WORK)


def _charge_tiles(image: Image.Image, budget: DecodingBudget) -> None:
    """Charge for the rectangles that Pillow decodes one after the other. Rectangles may overlap."""
    tiles = sorted(getattr(image, "tile", ()), key=lambda tile: tile.offset)
    for tile in tiles:
        budget.charge(_pixels(tile))
    for tile, following in pairwise(tiles):
        step = following.offset - tile.offset
        # Pillow reads the file in blocks. The length of a block is the distance to the data of the next rectangle. So a
        # small distance means many small blocks, and many calls of the decoder.
        if 0 < step < _pixels(tile) // 8:
            budget.charge(_pixels(tile) // step * PACKET_WORK)
    if not tiles:  # without rectangles, the decoder gets the whole file
        budget.charge(image.width * image.height)


def _pixels(tile: ImageFile._Tile) -> int:
    left, top, right, bottom = tile.extents or (0, 0, 0, 0)
    return (right - left) * (bottom - top)


def _charge_tiff(
    image: TiffImagePlugin.TiffImageFile, data: Buffer, budget: DecodingBudget, check_size: SizeCheck
) -> None:
    """Charge for the parts of a TIFF. The parts are strips with the picture's width, or tiles, which may be much larger
    than the picture.
    """
    tags = image.tag_v2
    columns, rows = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
    tiled = TiffImagePlugin.TILEWIDTH in tags
    if tiled:
        width, height = _number(tags, TiffImagePlugin.TILEWIDTH, 0), _number(tags, TiffImagePlugin.TILELENGTH, 0)
        offsets, sizes = tags.get(TiffImagePlugin.TILEOFFSETS, ()), tags.get(TiffImagePlugin.TILEBYTECOUNTS, ())
    else:
        width, height = columns, min(_number(tags, TiffImagePlugin.ROWSPERSTRIP, rows), rows)
        offsets, sizes = tags.get(TiffImagePlugin.STRIPOFFSETS, ()), tags.get(TiffImagePlugin.STRIPBYTECOUNTS, ())
    if not width or not height:
        return
    parts = -(-columns // width) * -(-rows // height)
    if _number(tags, TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2:
        parts *= len(image.getbands())
    if tiled:
        check_size(width, height)
        budget.charge(max(parts * width * height - columns * rows, 0))
    compression = _number(tags, TiffImagePlugin.COMPRESSION, 1)
    if compression == _TIFF_JPEG:
        _charge_jpeg_parts(data, offsets[:parts], sizes, budget)
    elif compression == _TIFF_OLD_JPEG:
        scans = memoryview(data).tobytes().count(b"\xff\xda")
        budget.charge(pass_work(scans * columns * rows))


def _number(tags: TiffImagePlugin.ImageFileDirectory_v2, tag: int, missing: int) -> int:
    """The first value of a tag. A damaged file may have several values."""
    value = tags.get(tag, missing)
    return int(value[0] if isinstance(value, tuple) and value else value)


def _charge_jpeg_parts(data: Buffer, offsets: Sequence[int], sizes: Sequence[int], budget: DecodingBudget) -> None:
    """Charge for parts that are JPEG files. Several parts may use the same bytes of the file."""
    known: dict[tuple[int, int], int] = {}
    for part in zip(offsets, sizes, strict=False):
        if part not in known:
            start, size = map(int, part)
            known[part] = scanned_samples(data, start=start, end=start + size)
        budget.charge(pass_work(known[part]))


def _charge_jpeg2000(data: Buffer, budget: DecodingBudget, check_size: SizeCheck) -> None:
    """Charge for the tables of a JPEG 2000. The sizes come from the codestream, because the header around it may claim
    a wrong size.
    """
    for stream in find_codestreams(data):
        check_size(stream.width, stream.height)
        budget.charge(stream.tiles * PACKET_WORK)
        budget.charge(stream.precincts * _PRECINCT_WORK + stream.precincts_at_once * _HELD_PRECINCT_WORK)
        budget.charge(stream.packets * _EMPTY_PACKET_WORK + stream.blocks * _BLOCK_WORK)


def _charge_avif(data: Buffer, budget: DecodingBudget, check_size: SizeCheck) -> None:
    """Charge for the AV1 frames of an AVIF. The sizes that the file claims for the picture and for the cells of a grid
    do not count, because the frames may be larger.
    """
    for width, height in find_frames(data, budget):
        check_size(width, height)
        budget.charge(max(width * height, PACKET_WORK))
