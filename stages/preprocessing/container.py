"""Opens audio and video containers with FFmpeg. A container can access only its own bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import av

from omni_pipeline.errors import bad_request
from omni_pipeline.wire.tensor import Buffer
from stages.preprocessing.joined_files import is_joined

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet

# The list has only formats that contain all their data. Playlists (HLS, DASH, concat) name other files and URLs, and
# FFmpeg would open these files and URLs.
DEMUXERS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "mpegts", "mpeg", "asf", "ogg", "wav",
    "w64", "mp3", "aac", "flac", "aiff", "caf", "au", "amr", "ac3", "eac3", "gif", "ivf",
)  # fmt: skip

# Maximum number of pixels of a picture that is decoded only to detect a file's format.
MAX_PROBED_PIXELS = 64 * 1024 * 1024

# Maximum number of streams. To examine the streams, FFmpeg opens a decoder for each stream, and keeps all decoders
# until it has examined the last stream. Files with many streams, such as films with subtitles and fonts, have a few
# dozen streams.
MAX_STREAMS = 64

# Formats for which FFmpeg reads the duration from the header, if the header states a duration. For other formats,
# FFmpeg estimates the duration.
_TELLS_ITS_LENGTH = "matroska,webm"

# A file counts as truncated if its content has less than this share of the length that its header states. A smaller
# difference is normal, because many programs write a length that is wrong by a frame or two.
PROMISE_KEPT = 0.9


@contextmanager
def open_container(
    data: Buffer, *, param: str, code: str, max_pixels: int = MAX_PROBED_PIXELS
) -> Iterator[InputContainer]:
    """Open `data`, and turn FFmpeg's errors into errors of the request, both when the data is opened and while it is
    read.

    Args:
        max_pixels: Maximum number of pixels of a picture. FFmpeg enforces this limit for every picture that it decodes,
            even while it examines the file. A check of the size in the header is not enough, because this size may be
            false.

    Raises:
        OmniError: 400 with `code`.
    """
    options = {
        "format_whitelist": ",".join(DEMUXERS),
        "protocol_whitelist": "none",
        "max_streams": str(MAX_STREAMS),
    }
    if is_joined(data):
        kind = code.removeprefix("invalid_")
        message = f"The {kind} consists of several files that were joined. Send each file as a separate media item."
        raise bad_request(message, param=param, code=code)
    try:
        with av.open(
            io.BytesIO(data),
            options={"max_pixels": str(max_pixels)},  # this limits the decoders that FFmpeg opens to probe the file
            container_options=options,
            metadata_errors="replace",
        ) as container:
            for stream in container.streams.video:
                if stream.codec_context is not None:
                    stream.codec_context.options = {"max_pixels": str(max_pixels)}
            yield container
    except av.error.FFmpegError as error:
        kind = code.removeprefix("invalid_")
        message = f"The {kind} is damaged or of an unknown format: {error.strerror}."
        if isinstance(error, MemoryError):  # FFmpeg also raises this error for too many streams
            message = f"The {kind} has more than {MAX_STREAMS} streams, or needs too much memory."
        raise bad_request(message, param=param, code=code) from error


def truncated(promised: int, found: int) -> bool:
    """Whether the file is certainly truncated, because `found` is much less than `promised`. `promised` is the value in
    the header, or 0 if the header has no value.
    """
    return found < PROMISE_KEPT * promised


class Extent:
    """Compares two lengths of a file: the latest end time of its packets, and the duration that its header promises."""

    def __init__(self, container: InputContainer) -> None:
        known = container.duration if container.format.name == _TELLS_ITS_LENGTH else None
        self._promised = (known or 0) / av.time_base
        self._reached = 0.0

    def saw(self, packet: Packet) -> bool:
        """Note the time of the next packet. Returns whether the packet has data."""
        if packet.pts is not None and packet.time_base is not None:
            self._reached = max(self._reached, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return packet.size > 0

    def check(self, param: str, code: str) -> None:
        """Raises OmniError 400 with `code` if the file is clearly shorter than its header promises."""
        if self._reached < PROMISE_KEPT * self._promised:
            kind = code.removeprefix("invalid_")
            message = f"The {kind} is cut short: {self._reached:.1f} of {self._promised:.1f} seconds are present."
            raise bad_request(message, param=param, code=code)
