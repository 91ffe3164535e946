"""Opens audio and video containers with FFmpeg so that they can reach nothing but their own bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import av

from omni_pipeline.errors import bad_request
from omni_pipeline.wire.messages import Buffer

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet

# Self-contained formats only. Playlists (HLS, DASH, concat) name further files and URLs, which FFmpeg would open.
DEMUXERS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "mpegts", "mpeg", "asf", "ogg", "wav",
    "w64", "mp3", "aac", "flac", "aiff", "caf", "au", "amr", "ac3", "eac3", "gif", "ivf",
)  # fmt: skip

# Pixels of a picture that is decoded only to find out what a file is.
MAX_PROBED_PIXELS = 64 * 1024 * 1024

# Whose header says how long the file is, if it says so, and where FFmpeg does not guess instead.
_TELLS_ITS_LENGTH = "matroska,webm"

# Of what a header promises, this much must be there; muxers miscount by a frame or two, truncation costs more.
PROMISE_KEPT = 0.9


@contextmanager
def open_container(
    data: Buffer, *, param: str, code: str, max_pixels: int = MAX_PROBED_PIXELS
) -> Iterator[InputContainer]:
    """Open `data` and turn whatever FFmpeg finds wrong, now or while it is read, into an error of the request.

    Args:
        max_pixels: No picture is decoded that has more, not even to find out what is in the file. What its headers say
            of their size need not be true.

    Raises:
        OmniError: 400 with `code`.
    """
    options = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "none"}
    try:
        with av.open(
            io.BytesIO(data),
            options={"max_pixels": str(max_pixels)},  # for the decoders that FFmpeg opens to look inside
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
        raise bad_request(message, param=param, code=code) from error


def truncated(promised: int, found: int) -> bool:
    """Whether so much is missing of what the header promised (0: nothing) that the file must have been cut."""
    return found < PROMISE_KEPT * promised


class Extent:
    """How far a file reaches, beside how far its header says it does."""

    def __init__(self, container: InputContainer) -> None:
        known = container.duration if container.format.name == _TELLS_ITS_LENGTH else None
        self._promised = (known or 0) / av.time_base
        self._reached = 0.0

    def saw(self, packet: Packet) -> bool:
        """Take note of the next packet; whether there is anything in it."""
        if packet.pts is not None and packet.time_base is not None:
            self._reached = max(self._reached, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return packet.size > 0

    def check(self, param: str, code: str) -> None:
        """Raises OmniError 400 with `code` if the file is clearly shorter than promised."""
        if self._reached < PROMISE_KEPT * self._promised:
            kind = code.removeprefix("invalid_")
            message = f"The {kind} is cut short: {self._reached:.1f} of {self._promised:.1f} seconds are there."
            raise bad_request(message, param=param, code=code)
