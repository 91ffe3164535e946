"""Decodes pictures to upright 8-bit RGB, within limits."""

from __future__ import annotations

import io
import struct
from functools import partial

from PIL import Image, UnidentifiedImageError

from omni_pipeline.errors import bad_request
from omni_pipeline.wire.tensor import Buffer
from stages.preprocessing.budget import DecodingBudget
from stages.preprocessing.picture_cost import charge_opening, charge_picture
from stages.preprocessing.rgb import to_upright_rgb

# The formats that may be opened. Pillow can also read formats that run other programs (EPS), and formats that clients
# do not use. Files of the last format have no signature. If this format were tried earlier, Pillow would take files of
# other formats for it.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")

# Pillow's exceptions for damaged files, which differ by format. The list comes from decoding thousands of damaged
# files. For example, a number in a TIFF may be a text or a fraction, which causes a TypeError.
DAMAGE = (OSError, ValueError, SyntaxError, RuntimeError, EOFError, TypeError, struct.error)

# Decoding a picture may cost as much as decoding `COST` plain pictures with the maximum number of pixels, plus
# `COST_OF_PARTS` for parts that do not depend on the picture's size. Of the pictures that clients usually send, a
# progressive JPEG with four channels costs the most: 4.5 times as much as a plain picture of its size.
COST = 5
COST_OF_PARTS = 16 * 1024 * 1024

# The reference's processor refuses pictures and frames with a larger ratio of the long side to the short side.
MAX_ASPECT_RATIO = 200


def decode_image(data: Buffer, *, max_pixels: int, param: str) -> Image.Image:
    """The first frame of a picture as RGB on white, turned as its EXIF data says.

    Args:
        max_pixels: Maximum number of pixels. The picture's size is read from the header, before anything is decoded.
        param: The request field, for error messages.

    Raises:
        OmniError: 400 ``invalid_image`` or ``image_too_large``.
    """
    check_size = partial(_check_size, max_pixels=max_pixels, param=param)
    cost = COST * max_pixels + COST_OF_PARTS
    budget = DecodingBudget(
        cost, lambda: _too_large(f"its decoding costs more than that of {cost} plain pixels", param)
    )
    try:
        charge_opening(data, budget, check_size)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(*image.size)
            charge_picture(image, data, budget, check_size)
            return to_upright_rgb(image)
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise bad_request(
            f"The image cannot be read: it is damaged, or not one of {kinds}.", param=param, code="invalid_image"
        ) from None
    # raised before the size is known, or for a picture that is embedded in this picture
    except Image.DecompressionBombError as error:
        raise _too_large(f"it has far more than the {max_pixels} pixels that are allowed", param) from error
    except DAMAGE as error:
        reason = str(error).rstrip(".")
        raise bad_request(f"The image is damaged: {reason}.", param=param, code="invalid_image") from error


def check_aspect_ratio(width: int, height: int, param: str, code: str) -> None:
    """Refuse sizes that the reference's processor refuses. Raises OmniError 400 with `code`."""
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        message = f"{width}×{height} pixels: one side may be at most {MAX_ASPECT_RATIO} times the other."
        raise bad_request(message, param=param, code=code)


def _check_size(width: int, height: int, *, max_pixels: int, param: str) -> None:
    if width * height > max_pixels:
        raise _too_large(f"it has {width}×{height} pixels, and {max_pixels} are allowed", param)
    if not width * height:
        raise bad_request("The image has no pixels.", param=param, code="invalid_image")
    check_aspect_ratio(width, height, param, "invalid_image")


def _too_large(reason: str, param: str) -> Exception:
    return bad_request(f"The image is too large: {reason}.", param=param, code="image_too_large")
