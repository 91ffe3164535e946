"""Decodes pictures as the reference's image loader does: to upright 8-bit RGB."""

from __future__ import annotations

import io
import re
import struct

from PIL import Image, ImageOps, UnidentifiedImageError

from omni_pipeline.errors import bad_request
from omni_pipeline.wire.tensor import Buffer

# The formats that may be opened. Pillow also knows formats that run other programs (EPS) or that nobody sends.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")

# Pillow's exceptions for damaged files, which differ by format; decoding thousands of damaged files showed these.
DAMAGE = (OSError, ValueError, SyntaxError, RuntimeError, EOFError, struct.error)

# A progressive JPEG is decoded scan by scan over all its pixels. Writers make about ten scans; a file with thousands is
# made to keep a decoder busy for hours.
MAX_SCANS = 100
_SCAN = re.compile(rb"\xff\xda")

# The reference's processor refuses pictures and frames with a larger ratio of sides.
MAX_ASPECT_RATIO = 200


def decode_image(data: Buffer, *, max_pixels: int, param: str) -> Image.Image:
    """The first frame of a picture as RGB, turned as its EXIF data says. Transparency is dropped, as in the reference.

    Args:
        max_pixels: Maximum number of pixels. The picture's size is read from the header, before anything is decoded.
        param: The request field, for error messages.

    Raises:
        OmniError: 400 ``invalid_image`` or ``image_too_large``.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, max_pixels, param)
            if image.format == "JPEG":
                _check_scans(data, param)
            return ImageOps.exif_transpose(image).convert("RGB")
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


def _check_size(image: Image.Image, max_pixels: int, param: str) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(f"it has {width}×{height} pixels, and {max_pixels} are allowed", param)
    if not width * height:
        raise bad_request("The image has no pixels.", param=param, code="invalid_image")
    check_aspect_ratio(width, height, param, "invalid_image")


def _check_scans(data: Buffer, param: str) -> None:
    """Refuse a JPEG with too many scan markers. Pixel data contains none; metadata (a thumbnail) may contain a few."""
    scans = sum(1 for _ in _SCAN.finditer(data))
    if scans > MAX_SCANS:
        raise _too_large(f"it is coded in {scans} scans, and {MAX_SCANS} are allowed", param)


def _too_large(reason: str, param: str) -> Exception:
    return bad_request(f"The image is too large: {reason}.", param=param, code="image_too_large")
