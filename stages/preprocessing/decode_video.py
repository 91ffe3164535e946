"""Decodes only those frames of a clip that the reference would sample, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import av
import numpy
import torch
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from msgspec import Struct

from omni_pipeline.errors import OmniError, bad_request
from omni_pipeline.wire.tensor import Buffer
from stages.preprocessing.budget import PACKET_WORK, DecodingBudget, pass_work
from stages.preprocessing.container import Extent, open_container, truncated
from stages.preprocessing.decode_image import check_aspect_ratio
from stages.preprocessing.jpeg_scans import scanned_samples

CODE = "invalid_video"

# If the frame rate in the header is wrong by more than this factor, the rate is computed from the times of the frames.
RATE_TOLERANCE = 1.25
DEFAULT_RATE = 25.0

# FFmpeg's decoders for frames that are JPEG pictures.
_JPEG_DECODERS = ("mjpeg", "mjpegb", "amv", "thp", "smvjpeg", "sp5x", "mxpeg", "ljpeg", "tiff")


class DecodedClip(Struct, frozen=True):
    """The properties of a clip that are known before any frame is decoded.

    Attributes:
        frames: Number of frames in the file, found by counting.
        rate: Average number of frames per second.
        width, height: Pixels of a frame, before the rotation that the file asks for.
        has_sound: Whether there is a sound track.
        largest: Width and height of the largest frame. Set only if a frame may be larger than the first one.
    """

    frames: int
    rate: float
    width: int
    height: int
    has_sound: bool
    largest: tuple[int, int] | None = None

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def check_length(clip: DecodedClip, max_seconds: float, param: str) -> None:
    """Refuse a clip that is too long. Raises OmniError 400 ``video_too_long``."""
    if clip.seconds > max_seconds:
        message = f"The video is {clip.seconds:.0f} seconds long, but only {max_seconds:g} are allowed."
        raise bad_request(message, param=param, code="video_too_long")


def pixel_budget(max_total_pixels: int, param: str) -> DecodingBudget:
    """A budget for the pixels of all frames of a clip. The budget's error is OmniError 400 ``video_too_large``."""

    def refusal() -> OmniError:
        message = f"All frames of the video together have more than the {max_total_pixels} pixels that are allowed."
        return bad_request(message, param=param, code="video_too_large")

    return DecodingBudget(max_total_pixels, refusal)


def probe_clip(data: Buffer, *, max_seconds: float, max_pixels: int, max_total_pixels: int, param: str) -> DecodedClip:
    """Examine a clip without decoding it.

    Frames are counted by reading the packets, because a header's count may be missing or false.

    Args:
        max_pixels: Maximum number of pixels of one frame.
        max_total_pixels: Maximum number of pixels of all frames together, which bounds the time to decode the clip. An
            almost empty packet of any stream counts as `PACKET_WORK` pixels.

    Raises:
        OmniError: 400 ``invalid_video``, ``video_too_long`` or ``video_too_large``.
    """
    budget = pixel_budget(max_total_pixels, param)
    with open_container(data, param=param, code=CODE) as container:
        stream = _pictures(container, param)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_pixels:
            message = f"Each frame of the video has {width}×{height} pixels, but only {max_pixels} are allowed."
            raise bad_request(message, param=param, code="video_too_large")
        extent = Extent(container)
        times = []
        for packet in container.demux():
            if extent.saw(packet) and packet.stream is stream and not packet.is_discard:
                times.append(packet.pts)
                budget.charge(max(width * height, _jpeg_work(packet), PACKET_WORK))
            else:
                budget.charge(PACKET_WORK)
        frames = len(times)
        if not frames or not width * height:
            raise bad_request("The video has no frames.", param=param, code=CODE)
        if truncated(stream.frames, frames):
            message = f"The video is cut short: {frames} of {stream.frames} frames are present."
            raise bad_request(message, param=param, code=CODE)
        extent.check(param, CODE)
        rate = _frame_rate(stream, times)
        clip = DecodedClip(frames, rate, width, height, has_sound=bool(container.streams.audio))
    check_length(clip, max_seconds, param)
    check_aspect_ratio(width, height, param, CODE)
    return clip


def sampled_frames(clip: DecodedClip, *, fps: float, min_frames: int, max_frames: int, multiple: int) -> list[int]:
    """Indices of the frames that the reference samples: `fps` frames for each second of the clip, spread evenly over
    the clip, at least `min_frames` and at most `max_frames` in total.

    The number of indices is a multiple of `multiple`. If the clip has fewer frames than `multiple`, all of its frames
    are sampled; the reference fails on such a clip.
    """
    total = clip.frames
    if total < multiple:
        return list(range(total))
    most = min(max_frames, total) // multiple * multiple
    wanted = min(max(total / clip.rate * fps, min_frames), most)
    count = max(int(wanted) // multiple * multiple, multiple)
    # Compute in torch's float32, as the reference does, because rounding decides which of two neighbouring frames is
    # sampled.
    return [index for index in torch.arange(0, total, total / count).int().tolist() if index < total]


def decode_frames(
    data: Buffer,
    indices: Sequence[int],
    *,
    at_once: int,
    total: int,
    max_pixels: int,
    max_total_pixels: int,
    param: str,
) -> Iterator[numpy.ndarray]:
    """Yields the frames at `indices` (ascending), upright and in RGB, as uint8 [at most `at_once`, height, width, 3].

    Frames that differ in size from the first frame are scaled to the size of the first frame. `total` is the number of
    frames that `probe_clip` has counted. If a few of these frames turn out to be missing, the last frame is repeated in
    their place.

    Args:
        max_pixels, max_total_pixels: As in `probe_clip`, but checked on the decoded frames, because a header may claim
            smaller frames.

    Raises:
        OmniError: 400 ``invalid_video`` or ``video_too_large``.
    """
    wanted = iter(indices)
    following = next(wanted, None)
    chunk: list[numpy.ndarray] = []
    to_rgb = VideoReformatter()  # one reformatter for all frames: setting it up takes longer than using it
    size: tuple[int, int] | None = None
    decoded = 0
    picture = None
    budget = pixel_budget(max_total_pixels, param)
    with open_container(data, param=param, code=CODE, max_pixels=max_pixels) as container:
        for frame in container.decode(_pictures(container, param)):
            budget.charge(max(frame.width * frame.height, PACKET_WORK))
            size = size or (frame.width, frame.height)
            if decoded == following:
                picture = _upright(to_rgb.reformat(frame, *size, "rgb24"), frame.rotation)
                chunk.append(picture)
                following = next(wanted, None)
            decoded += 1
            if len(chunk) == at_once:
                yield numpy.stack(chunk)
                chunk = []
            if following is None:
                break
    if following is not None and truncated(total, decoded):
        raise bad_request(f"The video is damaged after frame {decoded} of {total}.", param=param, code=CODE)
    if picture is None:
        raise bad_request("The video has no frames that can be decoded.", param=param, code=CODE)
    missing = 0 if following is None else len(indices) - list(indices).index(following)
    chunk += [picture] * missing
    for start in range(0, len(chunk), at_once):
        yield numpy.stack(chunk[start : start + at_once])


def _jpeg_work(packet: av.Packet) -> int:
    """The work of decoding the JPEG scans in a packet; 0 if the packet's decoder is not a JPEG decoder."""
    if packet.stream.codec_context.codec.name not in _JPEG_DECODERS:
        return 0
    return pass_work(scanned_samples(packet, all_pictures=True))


def _upright(frame: av.VideoFrame, rotation: int) -> numpy.ndarray:
    """The pixels of an RGB frame, turned counterclockwise by `rotation` degrees (a multiple of 90)."""
    return numpy.ascontiguousarray(numpy.rot90(frame.to_ndarray(), round(rotation / 90) % 4))


def _frame_rate(stream: VideoStream, times: Sequence[int | None]) -> float:
    """Frames per second. As in the reference, this is usually the header's value. But if the times of the frames
    contradict the header, the rate is computed from the times.

    Browsers record clips with a variable rate, and the rate that they write into the header may be wrong. If a clip has
    neither times nor a rate in its header, `DEFAULT_RATE` is assumed.
    """
    claimed = float(stream.average_rate or 0)
    known = [time for time in times if time is not None]
    span = float((max(known) - min(known)) * stream.time_base) if known and stream.time_base else 0.0
    if not span:
        return claimed or DEFAULT_RATE
    measured = (len(known) - 1) / span
    return claimed if measured / RATE_TOLERANCE <= claimed <= measured * RATE_TOLERANCE else measured


def _pictures(container: av.container.InputContainer, param: str) -> VideoStream:
    """The first stream of moving pictures; the cover picture of an audio file does not count."""
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise bad_request("The file has no video, or its video has an unknown codec.", param=param, code=CODE)
