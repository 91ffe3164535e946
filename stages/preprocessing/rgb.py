"""Turns opened pictures of any mode into 8-bit RGB. Samples with more than 8 bits are scaled, and transparent pictures
are put on a white background.

Pillow's own conversion clips values above 255. It also drops transparency, so colours that should be invisible appear.
The result then looks different from what an image viewer shows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy
from msgspec import Struct
from PIL import Image, ImageOps, TiffImagePlugin

# The modes with one channel of 16 bits. In a TIFF, only 12 of the bits may be in use.
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")

# The factors by which Pillow multiplies the sample values of a PNG to get 8-bit values. The keys are Pillow's names for
# the ways in which a file stores samples.
_SCALES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}

# In these formats, some programs write a fourth channel that is zero everywhere, although the picture is not
# transparent.
_LOOSE_ALPHA = ("BMP", "TGA", "ICO", "TIFF")

# The possible values of white in a picture whose format does not state the value. For floats, white may be 1. In a
# picture of integers, 1 is almost black.
_WHITES_OF_FLOATS = (1, 255, 65_535)
_WHITES_OF_INTEGERS = (255, 65_535)


# Number of pixels whose samples are scaled at a time.
_BAND_PIXELS = 1 << 20


class _Samples(Struct, frozen=True):
    """Properties of a picture's sample values, found when the picture is opened.

    Attributes:
        format: Name of the file's format.
        white: The value of white in a picture with one channel of more than 8 bits. None if the file does not state
            this value.
        zero_is_white: Whether 0 means white in such a picture.
        is_unsigned: Whether the file's 32-bit samples are unsigned, although Pillow reads them as signed.
        scale: Pillow multiplies the sample values in the file by this factor when it opens the picture.
    """

    format: str | None
    white: int | None
    zero_is_white: bool
    is_unsigned: bool
    scale: float

    @classmethod
    def of(cls, image: Image.Image) -> _Samples:
        white: int | None = 65_535 if image.mode in _DEEP_GREY or image.format == "PPM" else None
        zero_is_white = is_unsigned = False
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
            if bits == (12,):
                white = 4095
            elif bits == (16,) and image.mode == "I":  # signed
                white = 32_767
            is_unsigned = bits == (32,) and image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,)) == (1,)
            is_deep = image.mode in (*_DEEP_GREY, "I", "F")
            zero_is_white = is_deep and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        tiles = getattr(image, "tile", ())
        raw = tiles[0].args if tiles else None
        scale = _SCALES.get(raw if isinstance(raw, str) else "", 1) if image.format == "PNG" else 1
        return cls(image.format, white, zero_is_white, is_unsigned, scale)


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """An opened picture as 8-bit RGB, rotated according to its EXIF data. The opened picture itself may be changed."""
    samples = _Samples.of(image)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in (*_DEEP_GREY, "I", "F"):
        image = _scale_grey(image, samples)
    elif samples.scale != 1 and "transparency" in image.info:
        image.info["transparency"] = _scale_colour(image.info["transparency"], samples.scale)
    return _put_on_white(image, samples.format) if image.has_transparency_data else image.convert("RGB")


def _scale_grey(image: Image.Image, samples: _Samples) -> Image.Image:
    """A grey picture with more than 8 bits, converted to 8 bits. The result has an alpha channel if one of the grey
    values is transparent.
    """
    white = samples.white or _guess_white(image, samples)
    transparent = image.info.get("transparency")
    grey = Image.new("LA" if isinstance(transparent, int) else "L", image.size)
    for top, values in _bands(image, samples):
        band = Image.fromarray(_to_bytes(values, white, inverted=samples.zero_is_white))
        if isinstance(transparent, int):
            band.putalpha(Image.fromarray(numpy.where(values == transparent, 0, 255).astype(numpy.uint8)))
        grey.paste(band, (0, top))
    return grey


def _bands(image: Image.Image, samples: _Samples) -> Iterator[tuple[int, numpy.ndarray]]:
    """Yields the samples of some rows at a time, and the number of the first of these rows. Samples take more memory
    than the result, so not all of them are in memory at once.
    """
    rows = max(_BAND_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        values = numpy.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if samples.is_unsigned and image.mode == "I":
            values = values.view(numpy.uint32)
        elif image.mode == "F":
            values = numpy.nan_to_num(values, nan=0, posinf=numpy.inf)
        yield top, values


def _guess_white(image: Image.Image, samples: _Samples) -> float:
    """A guess at the value that means white: the smallest usual value that is greater than or equal to all samples. If
    the largest sample exceeds all usual values, the result is the largest sample.
    """
    bands = (values for _, values in _bands(image, samples))
    largest = max(float(values.max(where=numpy.isfinite(values), initial=0)) for values in bands)
    usual = _WHITES_OF_FLOATS if image.mode == "F" else _WHITES_OF_INTEGERS
    return next((white for white in usual if largest <= white), largest)


def _to_bytes(values: numpy.ndarray, white: float, *, inverted: bool) -> numpy.ndarray:
    if white in (4095, 32_767, 65_535):  # keep the upper 8 bits, as Pillow does for colours with 16 bits
        levels = numpy.clip(values, 0, white).astype(numpy.uint16) >> int(white).bit_length() - 8
    elif white == 255:
        levels = numpy.clip(values, 0, white)
    else:
        levels = numpy.rint(numpy.clip(values, 0, white).astype(numpy.float32) * numpy.float32(255 / white))
    result = levels.astype(numpy.uint8)
    return 255 - result if inverted else result


def _scale_colour(colour: int | bytes | tuple[int, ...], scale: float) -> int | bytes | tuple[int, ...]:
    match colour:
        case int():
            return int(colour * scale)
        case tuple():
            return tuple(int(value * scale) for value in colour)
        case _:
            return colour


def _put_on_white(image: Image.Image, format: str | None) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if format in _LOOSE_ALPHA and alpha.getextrema() == (0, 0):
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white
