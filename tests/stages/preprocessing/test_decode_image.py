"""Opaque pictures of 8 bits in every format are decoded in the same way as by the reference's loader. Bad pictures are
refused with the right error code.
"""

import io
import struct
import zlib
from collections.abc import Callable

import numpy
import pytest
from hostile_pictures import (
    bitmap_icon,
    grey_tiff,
    grid_avif,
    icon,
    jpeg2000,
    lying_avif,
    lying_jp2,
    multi_picture,
    packed_profiles,
    png,
    progressive,
    tiff,
    tiff_of_jpegs,
    tiff_of_strips,
    tiff_of_tile,
    with_segments,
)
from media_files import image_file, picture
from PIL import Image

from omni_pipeline.errors import ErrorInfo, OmniError
from stages.preprocessing.budget import pass_work
from stages.preprocessing.decode_image import COST, decode_image
from stages.preprocessing.jpeg_scans import scanned_samples

MAX_PIXELS = 1_000_000


def decoded(data: bytes) -> Image.Image:
    return decode_image(data, max_pixels=MAX_PIXELS, param="media[0]")


def refused(data: bytes) -> ErrorInfo:
    with pytest.raises(OmniError) as caught:
        decoded(data)
    return caught.value.info


def png_claiming(width: int, height: int) -> bytes:
    """A PNG that claims this size, with almost no data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "LAB", "I", "F"])
def test_every_mode_is_converted_as_pillow_does(mode: str) -> None:
    format = {"CMYK": "JPEG", "YCbCr": "JPEG", "LAB": "TIFF", "F": "TIFF", "I": "TIFF"}.get(mode, "PNG")
    source = picture(50, 40)
    image = source.convert("L").convert(mode) if mode in ("I", "F", "LA") else source.convert(mode)
    data = image_file(image, format)
    assert numpy.array_equal(decoded(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO"]
)
def test_every_format_is_read(format: str) -> None:
    data = image_file(picture(48, 32), format)
    assert numpy.array_equal(decoded(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(("orientation", "size"), [(1, (60, 40)), (3, (60, 40)), (6, (40, 60)), (8, (40, 60))])
def test_pictures_are_turned_as_exif_says(orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture(60, 40)
    turned = {1: 0, 3: 180, 6: -90, 8: 90}[orientation]
    image = decoded(image_file(upright, "PNG", exif=exif))
    assert image.size == size
    assert numpy.array_equal(image, upright.rotate(turned, expand=True))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    image = decoded(image_file(frames[0], format, save_all=True, append_images=frames[1:], **options))
    assert image.getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (2000, 10)])
def test_extreme_but_possible_sizes_are_read(size: tuple[int, int]) -> None:
    assert decoded(image_file(Image.new("RGB", size))).size == size


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_truncated_picture_is_refused(format: str) -> None:
    data = image_file(picture(200, 150), format)
    info = refused(data[: len(data) // 2])
    assert (info.status, info.code, info.param) == (400, "invalid_image", "media[0]")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        b"\x89PNG\r\n\x1a\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    info = refused(data)
    assert (info.status, info.code, info.param) == (400, "invalid_image", "media[0]")


@pytest.mark.parametrize("size", [(1001, 1000), (20_000, 20_000), (65_535, 65_535), (2**31 - 1, 1)])
def test_a_picture_that_claims_to_be_huge_is_refused_unseen(size: tuple[int, int]) -> None:
    info = refused(png_claiming(*size))
    assert (info.status, info.code, info.param) == (400, "image_too_large", "media[0]")


HOSTILE = {
    "jpeg of many scans": lambda: progressive(1000, 1000, 300),
    "jpeg of many scans behind the mark of a multi-picture file": lambda: multi_picture(
        progressive(1000, 1000, 300), progressive(64, 64, 0)
    ),
    "jpeg of many scans behind other segments": lambda: with_segments(
        progressive(1000, 1000, 300), (0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"), (0xFE, b"\xff\xd9"), (0xE1, b"Exif\0\0")
    ),
    "jpeg of many scans with another as its thumbnail": lambda: with_segments(
        progressive(1000, 1000, 300), (0xED, progressive(16, 16, 0))
    ),
    "png with many packed profiles": lambda: png(8, 8, *packed_profiles(100)),
    "icon with a large png": lambda: icon(png(4000, 4000), side=16),
    "icon with a png with many packed profiles": lambda: icon(png(16, 16, *packed_profiles(100)), side=16),
    "icon with a large bitmap": lambda: icon(struct.pack("<IiiHHIIiiII", 40, 4000, 8000, 1, 32, *[0] * 6), side=16),
    "tiff with a tile larger than the picture": lambda: tiff_of_tile(10, 10, 2000),
    "tiff with tiles that reach over the picture": lambda: tiff(
        *grey_tiff(10_000, 100, 8), (322, [16]), (323, [3200]), (324, [0] * 625), (325, [9] * 625), start=324
    ),
    "tiff with strips over strips": lambda: tiff_of_strips(1000, [index // 2 * 2 + index % 2 for index in range(100)]),
    "tiff with strips that are read byte by byte": lambda: tiff_of_strips(1000, [0, 1]),
    "tiff of strips of many scans": lambda: tiff_of_jpegs(progressive(1000, 16, 300), 1000, 16, 60),
    "jpeg 2000 larger than its file says": lambda: lying_jp2(2000, 64),
    "jpeg 2000 with a precinct for each pixel": lambda: jpeg2000(1000, levels=0, precincts=b"\0"),
    "avif larger than its file says": lambda: lying_avif(1500, 64),
    "avif of cells larger than the file says": lambda: grid_avif(900, 64, 6, 6),
    "jpeg 2000 with very many layers": lambda: jpeg2000(1000, layers=65_535, precincts=b"\x66" * 6),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_picture_that_costs_much_for_few_bytes_is_refused_undecoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = HOSTILE[name]()
    decoders = []
    decoder_of = Image._getdecoder
    monkeypatch.setattr(Image, "_getdecoder", lambda *given: decoders.append(given) or decoder_of(*given))
    info = refused(data)
    assert (info.status, info.code, info.param) == (400, "image_too_large", "media[0]")
    assert not decoders
    assert len(data) < 1_500_000


HONEST = {
    "progressive jpeg": lambda: progressive(1000, 800, 0, picture(1000, 800)),
    "jpeg of a hundred scans": lambda: progressive(300, 200, 95, picture(300, 200)),
    "jpeg with restart markers": lambda: image_file(picture(500, 300), "JPEG", restart_marker_blocks=1),
    "progressive jpeg in four channels": lambda: image_file(picture(1000, 900, mode="CMYK"), "JPEG", progressive=True),
    "phone's jpeg with a gain map": lambda: multi_picture(
        image_file(picture(1000, 800), "JPEG"), image_file(picture(500, 400), "JPEG")
    ),
    "interlaced png": lambda: png(64, 64, interlaced=True),
    "png with a profile": lambda: png(64, 64, *packed_profiles(1)),
    "icon of 48 pixels": lambda: image_file(picture(48, 48), "ICO", sizes=[(48, 48)]),
    "icon of 48 pixels in bitmaps": lambda: bitmap_icon(48),
    "icon of several sizes": lambda: image_file(picture(256, 256), "ICO"),
    "animated gif": lambda: image_file(picture(200, 90), "GIF", save_all=True, append_images=[picture(200, 90, 1)] * 9),
    "animated webp": lambda: image_file(picture(200, 100), "WEBP", save_all=True, append_images=[picture(200, 100, 1)]),
    "avif with transparency": lambda: image_file(picture(200, 100).convert("RGBA"), "AVIF"),
    "avif of cells": lambda: grid_avif(64, 64, 6, 4),
    "animated avif": lambda: image_file(picture(200, 100), "AVIF", save_all=True, append_images=[picture(200, 100, 1)]),
    "tiled tiff": lambda: tiff_of_tile(700, 700, 720),
    "tiff in strips": lambda: tiff_of_strips(400, [0, 80_000]),
    "tiff of jpegs": lambda: image_file(picture(500, 400), "TIFF", compression="jpeg"),
    "tiff of pages": lambda: image_file(picture(500, 400), "TIFF", save_all=True, append_images=[picture(1500, 1400)]),
    "jpeg 2000 in tiles": lambda: image_file(picture(800, 600), "JPEG2000", tile_size=(128, 128)),
    "jpeg 2000 in layers": lambda: image_file(
        picture(800, 600), "JPEG2000", quality_layers=[80, 40, 20, 10], precinct_size=(128, 128), irreversible=True
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_picture_of_a_form_that_may_cost_much_is_read(name: str) -> None:
    data = HONEST[name]()
    assert numpy.array_equal(decoded(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
@pytest.mark.parametrize("side", [300, 512, 900])
@pytest.mark.parametrize("size", [0, (1 << 16) + 99, (16 << 16) + 99, (24 << 16) + 99])
def test_an_icon_of_more_than_256_pixels_is_read(side: int, size: int) -> None:
    """`size` is the number of bytes to which the content of the icon is padded. With 0, the content is not padded. With
    each of the other sizes, the first bytes of the icon are also a valid header of a TGA file.
    """
    shown = Image.new("RGB", (side, side), "teal")
    assert numpy.array_equal(decoded(icon(image_file(shown, "PNG").ljust(size, b"\0"))), shown)


@pytest.mark.parametrize("tag", [256, 257, 273, 278])
@pytest.mark.parametrize("type", [2, 5, 12])
def test_a_tiff_whose_numbers_are_of_another_type_is_read_or_refused(tag: int, type: int) -> None:
    data = tiff_of_strips(40, [0, 800])
    entry = struct.pack("<HH", tag, 4)
    try:
        decoded(data.replace(entry, struct.pack("<HH", tag, type)))
    except OmniError as error:
        assert error.info.status == 400  # noqa: PT017


def test_the_largest_pictures_that_people_send_stay_within_the_cost() -> None:
    """A progressive JPEG with four channels has the highest cost for each pixel. The test uses a small picture, because
    the cost grows with the number of pixels.
    """
    data = image_file(picture(640, 480, mode="CMYK"), "JPEG", progressive=True)
    assert pass_work(scanned_samples(data)) + 640 * 480 <= COST * 640 * 480


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (4100, 20)])
def test_a_picture_too_long_for_the_reference_is_refused(size: tuple[int, int]) -> None:
    info = refused(image_file(Image.new("RGB", size)))
    assert (info.status, info.code) == (400, "invalid_image")
    assert "200" in info.message


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO"]
)
def test_damage_anywhere_is_an_error_of_the_request(format: str, damaged: Callable[[bytes], list[bytes]]) -> None:
    for data in damaged(image_file(picture(40, 30), format)):
        try:
            decoded(data)
        except OmniError as error:
            assert error.info.status == 400  # noqa: PT017 (whether it is refused depends on the damage)
