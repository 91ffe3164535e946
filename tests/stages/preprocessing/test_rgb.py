"""Transparent pictures are put on white, and pictures of more than 8 bits keep their brightness."""

import io
import struct

import numpy
import pytest
from fuzzing.odd_files import deep_pictures, png, transparent_pictures
from media_files import image_file
from PIL import Image

from stages.preprocessing.decode_image import decode_image

Y, X = numpy.mgrid[0:48, 0:64]
INK = (X // 9 + Y // 7) % 3 == 0
GREY = ((4 * X + Y) % 256).astype(numpy.uint8)
TRANSPARENT = transparent_pictures(INK)
DEEP = deep_pictures(GREY)


def decoded(data: bytes) -> numpy.ndarray:
    image = decode_image(data, max_pixels=1_000_000, param="media[0]")
    assert image.mode == "RGB"
    return numpy.asarray(image)


def in_colour(grey: numpy.ndarray) -> numpy.ndarray:
    return numpy.repeat(grey.astype(numpy.uint8)[..., None], 3, axis=2)


def grey_tiff(values: numpy.ndarray, bits: int, *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A TIFF with one row of grey samples. `values` has the bytes of the packed samples."""
    width = len(values.tobytes()) * 8 // bits
    data = values.tobytes().ljust(64, b"\0")
    tags = [
        (256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1),
        (279, len(values.tobytes())), (339, sample_format),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("name", TRANSPARENT)
def test_a_transparent_ground_is_white(name: str) -> None:
    assert numpy.array_equal(decoded(TRANSPARENT[name]), in_colour(numpy.where(INK, 0, 255)))


def test_what_is_half_transparent_is_mixed_with_white_as_qwens_own_loader_mixes_it() -> None:
    pixels = numpy.random.default_rng(0).integers(0, 256, (48, 64, 4), dtype=numpy.uint8)
    image = Image.fromarray(pixels)
    expected = Image.new("RGB", image.size, (255, 255, 255))
    expected.paste(image, mask=image.split()[3])
    assert numpy.array_equal(decoded(image_file(image)), expected)
    mean = pixels[..., :3] * (pixels[..., 3:] / 255) + 255 * (1 - pixels[..., 3:] / 255)
    assert numpy.abs(decoded(image_file(image)) - mean).max() <= 1


def test_an_opaque_picture_with_alpha_stays_as_it_is() -> None:
    image = Image.fromarray(numpy.stack([GREY, GREY.T[:48].repeat(64 // 48 + 1, 1)[:, :64], GREY, GREY * 0 + 255], -1))
    assert numpy.array_equal(decoded(image_file(image)), numpy.asarray(image)[..., :3])


@pytest.mark.parametrize("format", ["TGA", "TIFF"])
def test_a_fourth_channel_of_zeros_is_not_meant(format: str) -> None:
    image = Image.fromarray(numpy.stack([GREY, GREY, GREY, GREY * 0], -1))
    assert numpy.array_equal(decoded(image_file(image, format)), in_colour(GREY))


def test_a_wholly_transparent_png_is_white() -> None:
    assert decoded(image_file(Image.new("RGBA", (20, 20)))).min() == 255


@pytest.mark.parametrize("name", DEEP)
def test_a_deep_picture_keeps_its_brightness(name: str) -> None:
    assert numpy.array_equal(decoded(DEEP[name]), in_colour(GREY))


@pytest.mark.parametrize(
    ("values", "bits", "options", "expected"),
    [
        pytest.param([0, 0x1234, 0xFFFF], 16, {}, [0, 0x12, 255], id="16 bits"),
        pytest.param([0, 0x1234, 0xFFFF], 16, {"photometric": 0}, [255, 0xFF - 0x12, 0], id="white is zero"),
        pytest.param([-5, 0x1234, 0x7FFF], 16, {"sample_format": 2}, [0, 0x24, 255], id="signed"),
        pytest.param([0, 0x1234_0000, 0xFFFF_FFFF], 32, {}, [0, 0x12, 255], id="32 bits"),
        pytest.param([0, 128, 255], 32, {}, [0, 128, 255], id="8 bits in 32"),
        pytest.param([0, 0x1234, 0xFFFF], 32, {}, [0, 0x12, 255], id="16 bits in 32"),
        pytest.param([0.0, 0.5, 1.0], 32, {"sample_format": 3}, [0, 128, 255], id="float up to 1"),
        pytest.param([0.0, 128.0, 255.0], 32, {"sample_format": 3}, [0, 128, 255], id="float up to 255"),
        pytest.param([-1.0, 1e6, 4e6], 32, {"sample_format": 3}, [0, 64, 255], id="float of any range"),
        pytest.param([numpy.nan, 0.5, numpy.inf], 32, {"sample_format": 3}, [0, 128, 255], id="not a number"),
    ],
)  # fmt: skip
def test_samples_of_a_tiff_are_scaled(values: list[float], bits: int, options: dict[str, int], expected: list[int]):
    kind = {1: "u", 2: "i", 3: "f"}[options.get("sample_format", 1)]
    data = grey_tiff(numpy.array(values).astype(f"<{kind}{bits // 8}"), bits, **options)
    assert decoded(data)[0, :, 0].tolist() == expected


def test_twelve_bits_are_scaled() -> None:
    packed = numpy.array([0x00, 0x08, 0x00, 0xFF, 0xF1, 0x23], numpy.uint8)
    assert decoded(grey_tiff(packed, 12))[0, :, 0].tolist() == [0, 0x80, 0xFF, 0x12]


def test_dark_pictures_of_16_bits_stay_dark() -> None:
    dark = (GREY // 2).astype(">u2")
    assert decoded(png(64, 48, 16, 0, dark.tobytes())).max() == 0


@pytest.mark.parametrize("name", ["PNG I;16", "TIFF I;16B", "PNG RGB of 16 bits"])
def test_a_deep_picture_is_turned_as_exif_says(name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(DEEP[name])) as image:
        data = image_file(image, image.format or "", exif=exif)
    assert numpy.array_equal(decoded(data), numpy.rot90(in_colour(GREY), -1))
