"""Recognises containers that were made by joining several files. FFmpeg would read only the first of these files."""

from __future__ import annotations

import re
import struct

from omni_pipeline.wire.tensor import Buffer

# Names of boxes. An MP4 or MOV begins with one of these boxes.
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")

# The beginnings of FLV, ASF and IVF files. Other containers need no mark here, because FFmpeg reads all of the joined
# files.
_MARKS = [
    re.compile(mark, re.DOTALL)
    for mark in (
        rb"FLV\x01.\x00\x00\x00\x09\x00\x00\x00\x00",
        rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
        rb"DKIF\x00\x00\x20\x00",
    )
]


def is_joined(data: Buffer) -> bool:
    """Whether the file was made by joining several files of which FFmpeg would read only the first."""
    file = memoryview(data).cast("B")
    if bytes(file[4:8]) in _FIRST_BOXES:
        return _has_second_index(file)
    return any(mark.search(file, 1) is not None for mark in _MARKS if mark.match(file))


def _has_second_index(file: memoryview) -> bool:
    """Whether an MP4 has a second index of frames.

    If an MP4 consists of fragments, its first index lists no frames. An index without frames does not count.
    """
    at, indices = 0, 0
    while at + 8 <= len(file):
        size, name = struct.unpack_from(">I4s", file, at)
        if size == 1 and at + 16 <= len(file):
            (size,) = struct.unpack_from(">Q", file, at + 8)
        if size < 8:
            break
        if name == b"moov":
            if indices and b"mvex" not in bytes(file[at : at + size]):
                return True
            indices += 1
        at += size
    return False
