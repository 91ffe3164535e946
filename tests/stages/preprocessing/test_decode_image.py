"""Pictures of every format are decoded as by the reference's loader; bad ones are refused by name."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy
import pytest
from media_files import image_file, picture
from PIL import Image

from omni_pipeline.errors import ErrorInfo, OmniError
from stages.preprocessing.decode_image import decode_image

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


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_is_converted_as_pillow_does(mode: str) -> None:
    format = {"CMYK": "JPEG", "YCbCr": "JPEG", "F": "TIFF", "I": "TIFF"}.get(mode, "PNG")
    source = picture(50, 40)
    image = source.convert("L").convert(mode) if mode in ("I;16", "I", "F", "LA") else source.convert(mode)
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


def test_a_jpeg_of_very_many_scans_is_refused_unseen() -> None:
    file = io.BytesIO()
    picture(48, 32).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    assert decoded(data[:-2] + data[last:-2] * 20 + data[-2:]).size
    info = refused(data[:-2] + data[last:-2] * 200 + data[-2:])
    assert (info.status, info.code) == (400, "image_too_large")


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
