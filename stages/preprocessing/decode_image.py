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

# The formats that may be opened. Pillow also knows formats that run other programs (EPS) or that nobody sends.
# Files of the last format have no mark of their own, so that Pillow would take other files for it.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")

# Pillow's exceptions for damaged files, which differ by format; decoding thousands of damaged files showed these.
# A TIFF's number may be a text or a fraction, which is a TypeError.
DAMAGE = (OSError, ValueError, SyntaxError, RuntimeError, EOFError, TypeError, struct.error)

# A picture may cost as much as this number of pictures with the maximum number of pixels, and a little more for parts
# that do not depend on its size. A progressive JPEG of that size in four channels, as usual writers make it, costs the
# most of what people send: 4.5.
COST = 5
COST_OF_PARTS = 16 * 1024 * 1024

# The reference's processor refuses pictures and frames with a larger ratio of sides.
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
    except Image.DecompressionBombError as error:  # raised before the size is known, or for a picture inside this one
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
