"""Decodes pictures to RGB with 8 bits per channel, and rotates them as their EXIF data says. A picture that is too
large, or that needs too much work, is refused.
"""

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

# The formats that Pillow is allowed to open. Pillow can also read formats that run other programs (EPS), and formats
# that clients do not use. Pillow tries the formats in this order. TGA is the only format without a signature, so Pillow
# could mistake a file of another format for a TGA. Therefore TGA must be tried last.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")

# The exceptions that Pillow raises for damaged files. They differ from format to format. This list is the result of a
# test that decoded thousands of damaged files. For example, Pillow raises a TypeError if a TIFF has a text or a
# fraction in place of an integer.
DAMAGE = (OSError, ValueError, SyntaxError, RuntimeError, EOFError, TypeError, struct.error)

# The limit on the work of decoding one picture has two parts. The first part is `COST` times the work for a plain
# picture with the maximum number of pixels. The second part, `COST_OF_PARTS`, is for work that does not depend on the
# picture's size. Among the pictures that clients usually send, a progressive JPEG with four channels needs the most
# work: 4.5 times as much as a plain picture of the same size.
COST = 5
COST_OF_PARTS = 16 * 1024 * 1024

# Maximum ratio of the long side of a picture or frame to its short side. The reference's processor refuses larger
# ratios.
MAX_ASPECT_RATIO = 200


def decode_image(data: Buffer, *, max_pixels: int, param: str) -> Image.Image:
    """The first frame of a picture as RGB on a white background, rotated according to its EXIF data.

    Args:
        max_pixels: Maximum number of pixels. The picture's size is read from the header, before anything is decoded.
        param: The request field, for error messages.

    Raises:
        OmniError: 400 ``invalid_image`` or ``image_too_large``.
    """
    check_size = partial(_check_size, max_pixels=max_pixels, param=param)
    cost = COST * max_pixels + COST_OF_PARTS
    budget = DecodingBudget(
        cost,
        lambda: _too_large(
            f"decoding it takes more work than decoding a simple image of {cost} pixels, which is the limit",
            param,
        ),
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
            f"The image cannot be read: it is damaged, or its format is not one of {kinds}.",
            param=param,
            code="invalid_image",
        ) from None
    # Pillow raises this error if it refuses a picture before it reports the picture's size. Pillow also raises this
    # error for another picture that is embedded in the picture of the file.
    except Image.DecompressionBombError as error:
        raise _too_large(f"it has far more than the {max_pixels} pixels that are allowed", param) from error
    except DAMAGE as error:
        reason = str(error).rstrip(".")
        raise bad_request(f"The image is damaged: {reason}.", param=param, code="invalid_image") from error


def check_aspect_ratio(width: int, height: int, param: str, code: str) -> None:
    """Refuse the sizes that the reference's processor refuses. Raises OmniError 400 with `code`."""
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        message = (
            f"A size of {width}×{height} pixels is not supported: one side may be at most {MAX_ASPECT_RATIO} times as "
            "long as the other."
        )
        raise bad_request(message, param=param, code=code)


def _check_size(width: int, height: int, *, max_pixels: int, param: str) -> None:
    if width * height > max_pixels:
        raise _too_large(f"it has {width}×{height} pixels, but only {max_pixels} are allowed", param)
    if not width * height:
        raise bad_request("The image has no pixels.", param=param, code="invalid_image")
    check_aspect_ratio(width, height, param, "invalid_image")


def _too_large(reason: str, param: str) -> Exception:
    return bad_request(f"The image is too large: {reason}.", param=param, code="image_too_large")
