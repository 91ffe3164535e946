"""Reads the sizes of pictures and sounds from their headers. If a header cannot be read, these functions return no size
and raise no error.

The decoder reads the same header again later, and reports the error.
"""

from __future__ import annotations

import io
import warnings

import av
from msgspec import Struct
from PIL import Image

from omni_pipeline.errors import OmniError
from omni_pipeline.wire.tensor import Buffer
from stages.preprocessing.container import PROMISE_KEPT, open_container
from stages.preprocessing.decode_image import DAMAGE, FORMATS, MAX_ASPECT_RATIO
from stages.preprocessing.sound_files import open_sound
from stages.preprocessing.sound_pieces import find_pieces
from stages.preprocessing.waveform import sound_budget


class SoundLength(Struct, frozen=True):
    """The length of a sound in seconds. The first field is found without decoding the sound, and may be an estimate.
    The second field is a lower bound: if the sound is shorter, the decoder refuses it.
    """

    seconds: float = 0.0
    least_seconds: float = 0.0


def picture_size(data: Buffer, max_pixels: int) -> tuple[int, int] | None:
    """Width and height before the rotation that the file requests; None if the decoder will refuse the picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except (*DAMAGE, Image.DecompressionBombError):
        return None
    usable = 0 < width * height <= max_pixels and max(width, height) <= MAX_ASPECT_RATIO * min(width, height)
    return (width, height) if usable else None


def sound_length(data: Buffer, max_seconds: float) -> SoundLength:
    """The length of a sound, at most `max_seconds`."""
    seconds = least_seconds = 0.0
    try:
        for piece in find_pieces(data, sound_budget(max_seconds, ""), ""):
            length = _piece_length(piece)
            seconds += length.seconds
            least_seconds += length.least_seconds
            if seconds > max_seconds:
                break
    except OmniError:
        return SoundLength()
    return SoundLength(min(seconds, max_seconds), min(least_seconds, max_seconds))


def _piece_length(piece: Buffer) -> SoundLength:
    sound = open_sound(piece)
    if sound.source is None:
        return SoundLength(_container_seconds(piece))
    with sound.source:
        # The decoder refuses a file that is clearly shorter than its header promises.
        return SoundLength(sound.seconds, sound.promised_seconds * PROMISE_KEPT)


def _container_seconds(data: Buffer) -> float:
    """The length of a container's sound: the latest end time of its packets. The packets are read, because the header
    of a streamed recording does not state the length.
    """
    reached = 0.0
    try:
        with open_container(data, param="", code="invalid_audio") as container:
            for packet in container.demux(*container.streams.audio[:1]):
                if packet.pts is not None and packet.time_base is not None:
                    reached = max(reached, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except (OmniError, av.error.FFmpegError):
        pass
    return reached
