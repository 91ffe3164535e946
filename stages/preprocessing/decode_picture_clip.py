"""Decodes a clip that consists of pictures, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy
from msgspec import structs
from PIL import Image

from omni_pipeline.errors import OmniError
from omni_pipeline.wire.tensor import Buffer
from stages.preprocessing.budget import PACKET_WORK
from stages.preprocessing.decode_image import decode_image
from stages.preprocessing.decode_video import DecodedClip, check_length, pixel_budget
from stages.preprocessing.headers import picture_size


def probe_picture_clip(
    frames: Sequence[Buffer], rate: float, *, max_seconds: float, max_pixels: int, max_total_pixels: int, param: str
) -> DecodedClip:
    """Examine the headers of the pictures of a clip. The returned sizes are the sizes before the rotation by EXIF data.

    Args:
        rate: Number of pictures for each second.
        max_pixels: Maximum number of pixels of one picture.
        max_total_pixels: Maximum number of pixels of all pictures together. A picture that is smaller than the first
            picture counts as much as the first picture, because it will be scaled up to that size.

    Raises:
        OmniError: 400 ``invalid_image``, ``image_too_large``, ``video_too_long`` or ``video_too_large``.
    """
    budget = pixel_budget(max_total_pixels, param)
    sizes: list[tuple[int, int]] = []
    for frame in frames:
        # If `picture_size` finds no usable size in the header, decode the picture. If the picture must be refused,
        # `_picture` raises the error.
        size = picture_size(frame, max_pixels) or _picture(frames, len(sizes), max_pixels, param).size
        sizes.append(size)
        budget.charge(max(_area(size), _area(sizes[0]), PACKET_WORK))
    clip = DecodedClip(len(sizes), rate, *sizes[0], has_sound=False, largest=max(sizes, key=_area))
    check_length(clip, max_seconds, param)
    return clip


def decode_picture_clip(
    frames: Sequence[Buffer], *, at_once: int, max_pixels: int, max_total_pixels: int, param: str
) -> Iterator[numpy.ndarray]:
    """Yields all pictures, upright and in RGB, as uint8 [at most `at_once`, height, width, 3].

    Pictures that differ in size from the first picture are scaled to the size of the first picture. The reference fails
    if the pictures of a clip have different sizes.

    Args:
        max_pixels, max_total_pixels: As in `probe_picture_clip`.

    Raises:
        OmniError: 400 ``invalid_image``, ``image_too_large`` or ``video_too_large``.
    """
    budget = pixel_budget(max_total_pixels, param)
    size: tuple[int, int] | None = None
    for start in range(0, len(frames), at_once):
        chunk = []
        for index in range(start, min(start + at_once, len(frames))):
            picture = _picture(frames, index, max_pixels, param)
            size = size or picture.size
            budget.charge(max(_area(picture.size), _area(size), PACKET_WORK))
            if picture.size != size:
                picture = picture.resize(size, Image.Resampling.BICUBIC)
            chunk.append(numpy.asarray(picture))
        yield numpy.stack(chunk)


def _picture(frames: Sequence[Buffer], index: int, max_pixels: int, param: str) -> Image.Image:
    try:
        return decode_image(frames[index], max_pixels=max_pixels, param=param)
    except OmniError as error:
        message = f"Frame {index + 1} of {len(frames)}: {error.info.message}"
        raise OmniError(structs.replace(error.info, message=message)) from error


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
