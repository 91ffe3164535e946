"""Corrects sound files whose header does not state the size of the sound data: writes the true size into the header.

A program that streams a sound file does not know the size when it writes the header, and cannot correct the header
later.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum, auto

from msgspec import Struct

from stages.preprocessing.container import truncated

# Sizes that writers use for "unknown", in addition to 0. FFmpeg, SoX, arecord and GStreamer use the largest signed or
# unsigned number of 32 bits. Some of them subtract the length of a header, or round down to whole samples. SoX uses
# 0x7F000000 in AIFF.
_UNKNOWN_32 = (
    range(0x7EFF_0000, 0x7F00_0100),
    range(0x7FFF_0000, 0x8000_0100),
    range(0xFFFF_FF00, 0xFFFF_FFE0),
    range(0xFFFF_FFFC, 0x1_0000_0000),
)
_UNKNOWN_64 = 1 << 62

# GUIDs in a W64 file: the GUID of the file itself, and the last bytes of the GUID of every chunk.
_W64_FILE = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_CHUNK = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


class DataSize(Enum):
    """Says whether a header states the right size of the sound data."""

    HONEST = auto()  # the size is right, or the format has no size in its header
    UNKNOWN = auto()
    TOO_LARGE = auto()


class _Field(Struct, frozen=True):
    """The field for the size of the sound data.

    Attributes:
        at: Offset of the field.
        form: Format of the field for `struct`.
        start: Offset of the sound data.
        more: Number of bytes that the field counts in addition to the sound data.
        whole: The field for the size of the whole file: its offset, its format, and the number of bytes at the
            beginning of the file that are not counted in it. None if the format has no such field.
        chunks: Format, for `struct`, of the size field of other chunks, which may follow the sound data. Empty if no
            chunks can follow in this file format.
    """

    at: int
    form: str
    start: int
    more: int = 0
    whole: tuple[int, str, int] | None = None
    chunks: str = ""


def complete_size(file: memoryview) -> DataSize:
    """Write the size of the sound data into the header of `file` if the writer did not know the size."""
    field = _find_field(file)
    if field is None or field.start > len(file):
        return DataSize.HONEST
    (size,) = struct.unpack_from(field.form, file, field.at)
    claimed, present = size - field.more, len(file) - field.start
    if _is_unknown(size, claimed, field, file):
        _write(field.form, file, field.at, present + field.more)
        if field.whole is not None:
            at, form, uncounted = field.whole
            _write(form, file, at, len(file) - uncounted)
        return DataSize.UNKNOWN
    return DataSize.TOO_LARGE if truncated(claimed, present) else DataSize.HONEST


def _write(form: str, file: memoryview, at: int, size: int) -> None:
    struct.pack_into(form, file, at, min(size, 256 ** struct.calcsize(form) - 1))


def _is_unknown(size: int, claimed: int, field: _Field, file: memoryview) -> bool:
    if claimed <= 0:
        return len(file) > field.start and not (field.chunks and _are_chunks(file, field.start, field.chunks))
    return size >= _UNKNOWN_64 or any(size in sizes for sizes in _UNKNOWN_32)


def _are_chunks(file: memoryview, at: int, form: str) -> bool:
    """Whether the rest of the file, from the offset `at` on, consists of complete chunks. If so, the sound data before
    these chunks is empty, and the header states the right size (0) of the sound data.
    """
    end = at
    for name, _, start, size in _chunks(file, at, form):
        if not all(0x20 <= byte < 0x7F for byte in name):
            return False
        end = start + size + size % 2
    return len(file) <= end <= len(file) + 1


def _chunks(file: memoryview, at: int, form: str) -> Iterator[tuple[bytes, int, int, int]]:
    """Yields for each chunk: the chunk's name, the offset of the field with its size, the offset of its content, and
    its size.
    """
    while at + 4 + struct.calcsize(form) <= len(file):
        start = at + 4 + struct.calcsize(form)
        (size,) = struct.unpack_from(form, file, at + 4)
        yield bytes(file[at : at + 4]), at + 4, start, size
        at = start + size + size % 2


def _find_field(file: memoryview) -> _Field | None:
    match bytes(file[:4]), bytes(file[8:12]):
        case b"RIFF", b"WAVE":
            return _find_in_wav(file, "<I")
        case b"RIFX", b"WAVE":
            return _find_in_wav(file, ">I")
        case ((b"RF64" | b"BW64"), b"WAVE"):
            return _find_in_rf64(file)
        case b"FORM", (b"AIFF" | b"AIFC"):
            return _find_in_aiff(file)
        case b"caff", _:
            return _find_in_caf(file)
        case b".snd", _ if len(file) >= 24:
            (start,) = struct.unpack_from(">I", file, 4)
            return _Field(8, ">I", start)
        case b"riff", _ if file[:16] == _W64_FILE:
            return _find_in_w64(file)
    return None


def _find_in_wav(file: memoryview, form: str) -> _Field | None:
    for name, at, start, _ in _chunks(file, 12, form):
        if name == b"data":
            return _Field(at, form, start, whole=(4, form, 8), chunks=form)
    return None


def _find_in_rf64(file: memoryview) -> _Field | None:
    long = None
    for name, at, start, size in _chunks(file, 12, "<I"):
        if name == b"ds64" and size >= 24 and start + 24 <= len(file):
            long = start
        elif name == b"data":
            if size == 0xFFFF_FFFF and long is not None:
                return _Field(long + 8, "<Q", start, whole=(long, "<Q", 8))
            return _Field(at, "<I", start, chunks="<I")
    return None


def _find_in_aiff(file: memoryview) -> _Field | None:
    for name, at, start, _ in _chunks(file, 12, ">I"):
        if name == b"SSND" and start + 8 <= len(file):
            (offset,) = struct.unpack_from(">I", file, start)
            return _Field(at, ">I", start + 8 + offset, more=8 + offset, whole=(4, ">I", 8), chunks=">I")
    return None


def _find_in_caf(file: memoryview) -> _Field | None:
    at = 8
    while at + 12 <= len(file):
        (size,) = struct.unpack_from(">Q", file, at + 4)
        if file[at : at + 4] == b"data":
            return _Field(at + 4, ">Q", at + 16, more=4)
        at += 12 + size
    return None


def _find_in_w64(file: memoryview) -> _Field | None:
    at = 40
    while at + 24 <= len(file):
        (size,) = struct.unpack_from("<Q", file, at + 16)
        if file[at : at + 4] == b"data" and file[at + 4 : at + 16] == _W64_CHUNK:
            return _Field(at + 16, "<Q", at + 24, more=24, whole=(16, "<Q", 0))
        at += max(size + -size % 8, 24)
    return None
