"""Determines the options for each picture and clip. The sources are the request, its `mm_processor_kwargs`, and the
content part that contains the item.

An option in a part applies to the item of this part, and takes precedence over an option of the request.
"""

from __future__ import annotations

from typing import Any

from gateway.api import schema
from gateway.api.schema import ChatCompletionRequest, ClipOptions, PictureOptions
from omni_pipeline.errors import OmniError, bad_request
from stages.messages import PictureSize, VideoOptions

# For each field of `mm_processor_kwargs`, the field of the request that has the same meaning for clips.
SAME_OF_CLIPS = {
    "fps": "video_fps",
    "max_frames": "video_max_frames",
    "min_pixels": "video_min_pixels",
    "max_pixels": "video_max_pixels",
    "total_pixels": "video_total_pixels",
    "use_audio_in_video": "use_audio_in_video",
}


def clip_options(request: ChatCompletionRequest) -> VideoOptions:
    """The options for clips whose parts have no options.

    Raises:
        OmniError: 400 if the request contradicts its `mm_processor_kwargs`, or if a lower bound is above the upper
            bound.
    """
    common = request.mm_processor_kwargs or ClipOptions()
    given: dict[str, Any] = {}
    names: dict[str, str] = {}
    for option, field in SAME_OF_CLIPS.items():
        own, other = getattr(request, field), getattr(common, option)
        if own is not None and other is not None and own != other:
            raise _contradiction(
                f"mm_processor_kwargs.{option}",
                f"its value differs from the value of '{field}'; send only one of these two fields",
            )
        given[option] = other if own is None else own
        names[option] = f"mm_processor_kwargs.{option}" if own is None else field
    options = _clip(VideoOptions(), ClipOptions(**given))
    if _crossed(options):
        raise _contradiction(names["min_pixels"], f"it is larger than '{names['max_pixels']}'")
    return options


def options_of_clip(part: schema.Part, param: str, request_options: VideoOptions) -> VideoOptions | None:
    """The options of the clip in `part`; None if the part has no options. Raises OmniError as `clip_options` does."""
    if not isinstance(part, ClipOptions) or not _given(part):
        return None
    options = _clip(request_options, part)
    _check_item(options, part, param)
    return options


def size_of_picture(part: schema.Part | None, param: str, request: ChatCompletionRequest) -> PictureSize | None:
    """The size limits for the picture in `part`, or in a top-level list; None if the request sets no limits.

    Raises:
        OmniError: 400 if the bounds contradict each other.
    """
    own = part if isinstance(part, PictureOptions) else PictureOptions()
    common = request.mm_processor_kwargs or PictureOptions()
    size = PictureSize(
        min_pixels=common.min_pixels if own.min_pixels is None else own.min_pixels,
        max_pixels=common.max_pixels if own.max_pixels is None else own.max_pixels,
    )
    if size == PictureSize():
        return None
    _check_item(size, own, param)
    return size


def _clip(base: VideoOptions, given: ClipOptions) -> VideoOptions:
    return VideoOptions(
        fps=base.fps if given.fps is None else given.fps,
        max_frames=base.max_frames if given.max_frames is None else given.max_frames,
        min_pixels=base.min_pixels if given.min_pixels is None else given.min_pixels,
        max_pixels=base.max_pixels if given.max_pixels is None else given.max_pixels,
        total_pixels=base.total_pixels if given.total_pixels is None else given.total_pixels,
        use_audio=base.use_audio if given.use_audio_in_video is None else given.use_audio_in_video,
    )


def _given(options: ClipOptions) -> bool:
    return any(getattr(options, name) is not None for name in ClipOptions.__struct_fields__)


def _check_item(size: VideoOptions | PictureSize, own: PictureOptions, param: str) -> None:
    """Check the limits for one item. `own` contains the limits that the item's content part sets. If the limits
    contradict each other, the error names one of the limits in `own`.
    """
    if _crossed(size):
        if own.min_pixels is None:
            raise _contradiction(
                f"{param}.max_pixels", "it is smaller than the minimum number of pixels that the request sets"
            )
        raise _contradiction(f"{param}.min_pixels", "it is larger than the maximum number of pixels for this item")


def _crossed(size: VideoOptions | PictureSize) -> bool:
    return size.min_pixels is not None and size.max_pixels is not None and size.min_pixels > size.max_pixels


def _contradiction(param: str, reason: str) -> OmniError:
    return bad_request(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")
