"""Opens audio and video containers with FFmpeg so that they can reach nothing but their own bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import av

from omni_pipeline.errors import bad_request
from omni_pipeline.wire import Buffer

if TYPE_CHECKING:
    from av.container import InputContainer

# Self-contained formats only. Playlists (HLS, DASH, concat) name further files and URLs, which FFmpeg would open.
DEMUXERS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "mpegts", "mpeg", "asf", "ogg", "wav",
    "w64", "mp3", "aac", "flac", "aiff", "caf", "au", "amr", "ac3", "eac3", "gif", "ivf",
)  # fmt: skip

# Of what a header promises, this much must be there; muxers miscount by a frame or two, truncation costs more.
PROMISE_KEPT = 0.9


@contextmanager
def open_container(data: Buffer, *, param: str, code: str) -> Iterator[InputContainer]:
    """Open `data` and turn whatever FFmpeg finds wrong, now or while it is read, into an error of the request.

    Raises:
        OmniError: 400 with `code`.
    """
    options = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "none"}
    try:
        with av.open(io.BytesIO(data), container_options=options, metadata_errors="replace") as container:
            yield container
    except av.error.FFmpegError as error:
        kind = code.removeprefix("invalid_")
        message = f"The {kind} is damaged or of an unknown format: {error.strerror}."
        raise bad_request(message, param=param, code=code) from error


def truncated(promised: int, found: int) -> bool:
    """Whether so much is missing of what the header promised (0: nothing) that the file must have been cut."""
    return found < PROMISE_KEPT * promised
