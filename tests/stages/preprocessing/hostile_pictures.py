"""Makes small picture files that take a decoder much time or memory, and harmless pictures of the same formats."""

from __future__ import annotations

import struct
import zlib

from media_files import image_file, picture
from PIL import Image


def progressive(width: int, height: int, more_scans: int, image: Image.Image | None = None) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = image_file(image or Image.new("L", (width, height)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * more_scans + data[-2:]


def with_segments(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """The JPEG `jpeg` with these additional segments before all other segments. A segment is given by its marker and
    its content.
    """
    packed = [bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content for marker, content in segments]
    return jpeg[:2] + b"".join(packed) + jpeg[2:]


def multi_picture(first: bytes, second: bytes) -> bytes:
    """A file that contains two JPEG pictures, as phones write it. The second picture can be a gain map, for example."""
    entries = 8 + 2 + 3 * 12 + 4
    sizes = len(first) + 4 + 4 + entries + 32, len(second)
    index = b"II*\0" + struct.pack("<IH", 8, 3) + struct.pack("<HHI4s", 0xB000, 7, 4, b"0100")
    index += struct.pack("<HHII", 0xB001, 4, 1, 2) + struct.pack("<HHIII", 0xB002, 7, 32, entries, 0)
    index += struct.pack("<IIIHH", 0x030000, sizes[0], 0, 0, 0)
    index += struct.pack("<IIIHH", 0, sizes[1], sizes[0] - 10, 0, 0)
    return with_segments(first, (0xE2, b"MPF\0" + index)) + second


def png(width: int, height: int, *chunks: tuple[bytes, bytes], interlaced: bool = False) -> bytes:
    """A PNG in a single shade of grey, with these chunks before its pixels. If `interlaced` is set, width and height
    must be multiples of 8.
    """
    passes = [(8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2)] if interlaced else [(1, 1)]
    packer = zlib.compressobj(9)
    pixels = b""
    for across, down in passes:
        for _ in range(height // down):
            pixels += packer.compress(bytes(1 + width // across))
    pixels += packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    every = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    packed = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in every]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def packed_profiles(count: int) -> list[tuple[bytes, bytes]]:
    """PNG chunks, each with a colour profile of a megabyte."""
    return [(b"iCCP", b"profile\0\0" + zlib.compress(bytes(1024 * 1024 - 1), 9))] * count


def icon(content: bytes, side: int = 0) -> bytes:
    """An ICO file with one picture. `content` is the file of this picture (for example a PNG) inside the ICO. A side of
    0 stands for 256 pixels or more.
    """
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(content), 22) + content


def bitmap_icon(side: int) -> bytes:
    """An ICO in the old format, which contains a bitmap and a mask instead of a PNG file."""
    return image_file(picture(side, side).convert("RGBA"), "ICO", bitmap_format="bmp", sizes=[(side, side)])


def tiff(*tags: tuple[int, list[int]], data: bytes = b"", start: int) -> bytes:
    """A TIFF with these tags. The values of the tag `start` are offsets from the start of `data`; they are converted to
    offsets in the file.
    """
    size = 8 + 2 + 12 * len(tags) + 4
    place = size + sum(4 * len(values) for _, values in tags if len(values) > 1)
    entries, values_at, packed = b"", size, b""
    for tag, given in sorted(tags):
        values = [value + place for value in given] if tag == start else given
        content = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += content if len(values) == 1 else struct.pack("<I", values_at + len(packed))
        packed += content if len(values) > 1 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed + data


def grey_tiff(width: int, height: int, compression: int) -> list[tuple[int, list[int]]]:
    """The tags that every TIFF of 8-bit grey needs."""
    return [(256, [width]), (257, [height]), (258, [8]), (259, [compression]), (262, [1]), (277, [1])]


def tiff_of_tile(width: int, height: int, tile: int) -> bytes:
    """A TIFF with one tile of `tile`×`tile` pixels. The tile may be much larger than the picture."""
    data = zlib.compress(bytes(tile * tile), 9)
    tags = [*grey_tiff(width, height, 8), (322, [tile]), (323, [tile]), (324, [0]), (325, [len(data)])]
    return tiff(*tags, data=data, start=324)


def tiff_of_strips(side: int, offsets: list[int]) -> bytes:
    """An uncompressed TIFF. Two strips make the picture, and further strips overlap the data of these two. `offsets`
    are the starts of the strips.
    """
    strip = side * side // 2
    tags = [*grey_tiff(side, side, 1), (278, [side // 2]), (273, offsets), (279, [strip] * len(offsets))]
    return tiff(*tags, data=bytes(strip + max(offsets)), start=273)


def tiff_of_jpegs(strip: bytes, width: int, height: int, strips: int) -> bytes:
    """A TIFF in which all strips use the same JPEG data. The tags claim `width`×`height` pixels for a strip."""
    tags = [*grey_tiff(width, height * strips, 7), (278, [height]), (273, [0] * strips), (279, [len(strip)] * strips)]
    return tiff(*tags, data=strip, start=273)


def jpeg2000(
    side: int,
    *,
    layers: int | None = None,
    levels: int | None = None,
    block: int | None = None,
    precincts: bytes = b"",
    **options: object,
) -> bytes:
    """A grey JPEG 2000 whose header has these values for layers, levels, blocks and precincts (see the marker COD in
    the standard).
    """
    data = image_file(Image.new("L", (side, side)), "JPEG2000", no_jp2=True, **options)
    at = data.index(b"\xff\x52") + 2
    end = at + int.from_bytes(data[at : at + 2], "big")
    coding = bytearray(data[at + 2 : end])
    if layers is not None:
        coding[2:4] = layers.to_bytes(2, "big")
    if levels is not None:
        coding[5] = levels
    if block is not None:
        coding[6] = coding[7] = block
    if precincts:
        coding[0] |= 1
        coding[10:] = precincts
    return data[:at] + (len(coding) + 2).to_bytes(2, "big") + bytes(coding) + data[end:]


def lying_jp2(side: int, claimed: int) -> bytes:
    """A JPEG 2000 file whose header claims the size `claimed`, although the picture has the size `side`."""
    data = image_file(Image.new("L", (side, side)), "JPEG2000")
    at = data.index(b"ihdr") + 4
    return data[:at] + struct.pack(">II", claimed, claimed) + data[at + 8 :]


def lying_avif(side: int, claimed: int) -> bytes:
    """An AVIF whose header claims the size `claimed`, although its AV1 frame has the size `side`."""
    data = image_file(Image.new("L", (side, side)), "AVIF", speed=10)
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", claimed, claimed) + data[at + 8 :]


def grid_avif(side: int, claimed: int, columns: int, rows: int) -> bytes:
    """An AVIF of `columns`×`rows` cells. All cells use the same AV1 frame of `side` pixels, but claim the size
    `claimed`.
    """
    single = image_file(Image.new("RGB", (side, side)), "AVIF", speed=10)
    frame = single[single.index(b"mdat") + 4 :]

    def content_of(name: bytes) -> bytes:
        at = single.index(name)
        return single[at - 4 : at - 4 + int.from_bytes(single[at - 4 : at], "big")]

    def size(width: int, height: int) -> bytes:
        return _box(b"ispe", struct.pack(">III", 0, width, height))

    cells = range(2, columns * rows + 2)
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, columns * claimed, rows * claimed)
    items = [(1, b"grid"), *((cell, b"av01") for cell in cells)]
    entries = b"".join(_box(b"infe", struct.pack(">IHH4sB", 2 << 24, item, 0, kind, 0)) for item, kind in items)
    properties = [
        size(columns * claimed, rows * claimed),
        size(claimed, claimed),
        content_of(b"av1C"),
        content_of(b"pixi"),
    ]
    used = struct.pack(">HBBB", 1, 2, 1, 4) + b"".join(struct.pack(">HBBBB", cell, 3, 2, 0x83, 4) for cell in cells)

    def meta(place: int) -> bytes:
        located = struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(grid))
        located += b"".join(struct.pack(">HHHHII", cell, 0, 0, 1, place, len(frame)) for cell in cells)
        return _box(
            b"meta",
            bytes(4)
            + _box(b"hdlr", bytes(8) + b"pict" + bytes(13))
            + _box(b"pitm", struct.pack(">IH", 0, 1))
            + _box(b"iloc", struct.pack(">IHH", 1 << 24, 0x4400, len(items)) + located)
            + _box(b"iinf", struct.pack(">IH", 0, len(items)) + entries)
            + _box(b"iref", bytes(4) + _box(b"dimg", struct.pack(f">HH{len(cells)}H", 1, len(cells), *cells)))
            + _box(
                b"iprp", _box(b"ipco", b"".join(properties)) + _box(b"ipma", struct.pack(">II", 0, len(items)) + used)
            )
            + _box(b"idat", grid),
        )

    head = _box(b"ftyp", b"avif" + bytes(4) + b"avifmif1miaf")
    return head + meta(len(head) + len(meta(0)) + 8) + _box(b"mdat", frame)


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, name) + content
