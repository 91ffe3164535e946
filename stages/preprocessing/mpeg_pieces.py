"""Finds the pieces of an MP3 that was joined from several files, and leaves out the tags and the junk between them.

An MP3 is a sequence of frames. Instead of sound, the first frame may contain a header (Xing, Info, VBRI) with the
number of frames. A decoder stops after this number of frames. It also stops at an unknown tag, and after some junk. So
if a file was joined from several files, the decoder would miss the files after the first.
"""

from __future__ import annotations

import re
import struct

from msgspec import Struct

from omni_pipeline.errors import bad_request
from stages.preprocessing.budget import PACKET_WORK, DecodingBudget
from stages.preprocessing.container import truncated

# The bytes with which a frame or a tag may begin.
_CANDIDATE = re.compile(rb"\xff[\xe2-\xff]|ID3|TAG|APETAGEX")
_CANDIDATE_WORK = 128

_NOT_ZERO = re.compile(rb"[^\0]")

# The number of frames that a header states may be a little too small, so a few frames more may follow. If fewer than
# `_FRAMES_OF_PIECE` additional frames follow, they still belong to the same piece.
_FRAMES_OF_PIECE = 8

# Bit rate in kbit/s, by version (1, or 2 and 2.5), layer, and index.
_BIT_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLING_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}

_ID3V1_BYTES = 128
_APE_PART_BYTES = 32
_APE_IS_HEADER = 1 << 29


class _Frame(Struct, frozen=True):
    """The header of a frame.

    Attributes:
        form: The properties that cannot change within a piece: version, layer, sampling rate, and whether there is only
            one channel.
        length: Number of bytes.
        side_bytes: Number of bytes between the header and the place where a Xing header would be.
    """

    form: tuple[int, int, int, bool]
    length: int
    side_bytes: int


class _Piece(Struct):
    """A piece: frames that come from one of the joined files.

    Attributes:
        form: As in `_Frame`.
        runs: Beginning and end of each part of the file in which the frames follow each other without gaps.
        frames: Number of frames.
        frames_left: Number of frames that are still expected; None if it is not known.
        has_header: Whether the first frame of the piece is a header.
    """

    form: tuple[int, int, int, bool]
    runs: list[tuple[int, int]]
    frames: int
    frames_left: int | None
    has_header: bool


def find_mpeg_pieces(file: memoryview, start: int, budget: DecodingBudget, param: str) -> list[bytes]:
    """The pieces of an MP3, each without the bytes between its frames. The first frame begins at `start`, or after the
    zero bytes that begin at `start`.

    The result is empty if the file is not an MP3, or if it consists of one piece with nothing between its frames.

    Raises:
        OmniError: The error that `budget` raises. Also 400 ``invalid_audio`` if two conditions are true: the file has
            fewer frames than its header states, and it has other data between its frames.
    """
    begin = _NOT_ZERO.search(file, start)
    if begin is None or not _is_confirmed(file, begin.start()):
        return []
    pieces: list[_Piece] = []
    at, in_step = begin.start(), True
    while at < len(file):
        budget.charge(_CANDIDATE_WORK)
        frame = _read_frame(file, at)
        is_next = bool(pieces) and in_step and frame is not None and frame.form == pieces[-1].form
        in_step = frame is not None and (is_next or _is_confirmed(file, at))
        if frame is not None and in_step:
            _add(pieces, frame, file, at, budget)
            at += frame.length
        else:
            at = _skip(file, at)
    _merge_miscounts(pieces)
    if len(pieces) == 1 and len(pieces[0].runs) == 1:
        return []
    if any(
        len(piece.runs) > 1 and truncated(piece.frames + (piece.frames_left or 0), piece.frames) for piece in pieces
    ):
        message = "The audio is damaged: it has fewer frames than its header states, and other data between the frames."
        raise bad_request(message, param=param, code="invalid_audio")
    return [b"".join(file[first:end] for first, end in piece.runs) for piece in pieces]


def tag_length(file: memoryview, at: int) -> int:
    """The length of the tag that begins at this position; 0 if no tag begins there."""
    match bytes(file[at : at + 3]):
        case b"ID3" if at + 10 <= len(file):
            sizes = file[at + 6 : at + 10]
            size = sizes[0] << 21 | sizes[1] << 14 | sizes[2] << 7 | sizes[3]
            return 10 + size + (10 if file[at + 5] & 0x10 else 0)
        case b"TAG":
            return _ID3V1_BYTES
        case b"APE" if file[at : at + 8] == b"APETAGEX" and at + _APE_PART_BYTES <= len(file):
            size, _, flags = struct.unpack_from("<III", file, at + 12)
            return _APE_PART_BYTES + (size if flags & _APE_IS_HEADER else 0)
    return 0


def _skip(file: memoryview, at: int) -> int:
    """The next position after `at` where a frame or a tag may begin."""
    if length := tag_length(file, at):
        return at + length
    candidate = _CANDIDATE.search(file, at + 1)
    return candidate.start() if candidate else len(file)


def _add(pieces: list[_Piece], frame: _Frame, file: memoryview, at: int, budget: DecodingBudget) -> None:
    """Add a frame to the last piece, or begin a piece with it."""
    count = _count_in_header(file, at, frame)
    if not pieces or count is not None or frame.form != pieces[-1].form or pieces[-1].frames_left == 0:
        pieces.append(_Piece(frame.form, [], 0, None if not count else count + 1, count is not None))
    piece = pieces[-1]
    end = min(at + frame.length, len(file))
    if piece.runs and piece.runs[-1][1] == at:
        piece.runs[-1] = (piece.runs[-1][0], end)
    else:
        budget.charge(PACKET_WORK)
        piece.runs.append((at, end))
    piece.frames += 1
    if piece.frames_left is not None:
        piece.frames_left -= 1


def _merge_miscounts(pieces: list[_Piece]) -> None:
    """If a piece has a few more frames than its header states, `_add` has begun a new piece with the additional frames.
    Join these two pieces.
    """
    for index in range(len(pieces) - 1, 0, -1):
        piece, before = pieces[index], pieces[index - 1]
        if piece.has_header or piece.form != before.form or piece.frames >= _FRAMES_OF_PIECE:
            continue
        if before.runs[-1][1] == piece.runs[0][0]:
            before.runs[-1] = (before.runs[-1][0], piece.runs.pop(0)[1])
        before.runs += piece.runs
        del pieces[index]


def _is_confirmed(file: memoryview, at: int) -> bool:
    """Whether a frame certainly begins at this position: it is followed by two frames with the same `form`, by a tag,
    or by the end of the file.
    """
    form = None
    for _ in range(3):
        frame = _read_frame(file, at)
        if frame is None or form not in (None, frame.form):
            return form is not None and (at >= len(file) or tag_length(file, at) > 0)
        form = frame.form
        at += frame.length
    return True


def _read_frame(file: memoryview, at: int) -> _Frame | None:
    if at + 4 > len(file) or file[at] != 0xFF or file[at + 1] < 0xE0:
        return None
    second, third, fourth = file[at + 1], file[at + 2], file[at + 3]
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    bit_rate, rate = third >> 4, third >> 2 & 3
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    first_version = version == 3
    bits = 1000 * _BIT_RATES[1 if first_version else 2, layer][bit_rate - 1]
    sampling_rate = _SAMPLING_RATES[version][rate]
    padding = third >> 1 & 1
    if layer == 1:
        length = 4 * (12 * bits // sampling_rate + padding)
    else:
        length = (144 if first_version or layer == 2 else 72) * bits // sampling_rate + padding
    is_mono = fourth >> 6 == 3
    side_bytes = (17 if is_mono else 32) if first_version else (9 if is_mono else 17)
    return _Frame((version, layer, sampling_rate, is_mono), length, side_bytes)


def _count_in_header(file: memoryview, at: int, frame: _Frame) -> int | None:
    """The number of frames according to the header in this frame. 0 if the header states no number, None if there is no
    header.
    """
    if frame.form[1] != 3:
        return None
    content = bytes(file[at + 4 : at + min(frame.length, 64)])
    for place in (frame.side_bytes, frame.side_bytes + 2):  # without or with a checksum of two bytes
        if content[place : place + 4] in (b"Xing", b"Info") and len(content) >= place + 12:
            flags, count = struct.unpack_from(">II", content, place + 4)
            return count if flags & 1 else 0
    if content[32:36] == b"VBRI" and len(content) >= 50:
        return int(struct.unpack_from(">I", content, 46)[0])
    return None
