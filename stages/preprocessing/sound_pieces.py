"""Splits a file that was made by joining several sound files. Decoders would stop at the end of the first sound file.

For example, a user has joined the files with the program `cat`, or a client has joined the files of a stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from omni_pipeline.wire.tensor import Buffer
from stages.preprocessing.budget import PIECE_WORK, DecodingBudget
from stages.preprocessing.mpeg_pieces import find_mpeg_pieces, tag_length

# The beginning of a file of each format. Each pattern has at least eight fixed bytes, so it does not occur in sound
# data by chance.
_MARKS = [
    re.compile(mark, re.DOTALL)
    for mark in (
        rb"R(?:IFF|IFX|F64)....WAVE",
        rb"BW64....WAVE",
        rb"FORM....AIF[FC]",
        rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00.{8}wave\xf3\xac\xd3\x11",
        rb"caff\x00\x01\x00\x00desc",
        rb"\.snd\x00\x00.{6}\x00\x00\x00.\x00[\x00-\x0b]",
        rb"fLaC[\x00\x80]\x00\x00\x22",
    )
]

# A page of an Ogg that begins a logical stream.
_OGG_FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x03\x06\x07]\x00{8}", re.DOTALL)
_OGG_SEGMENTS_AT = 26


def find_pieces(data: Buffer, budget: DecodingBudget, param: str) -> Sequence[Buffer]:
    """The files that were joined into a sound file, in order. If no files were joined, the result is the file itself.

    Raises:
        OmniError: The error that `budget` raises. Also 400 ``invalid_audio`` for an MP3 that lacks a large part in its
            middle.
    """
    file = memoryview(data).cast("B")
    start = 0
    while length := tag_length(file, start):
        start += length
    for mark in _MARKS:
        if mark.match(file, start):
            return _split(file, [match.start() for match in _charged(mark, file, start, budget)])
    if _OGG_FIRST_PAGE.match(file, start):
        return _split(file, _ogg_starts(file, start, budget))
    return find_mpeg_pieces(file, start, budget, param) or [file]


def _charged(mark: re.Pattern[bytes], file: memoryview, start: int, budget: DecodingBudget) -> list[re.Match[bytes]]:
    found: list[re.Match[bytes]] = []
    for match in mark.finditer(file, start):
        budget.charge(PIECE_WORK if found else 0)
        found.append(match)
    return found


def _split(file: memoryview, starts: list[int]) -> list[memoryview]:
    """The parts of `file` that begin at `starts`. The first part begins at the beginning of the file."""
    ends = [*starts[1:], len(file)]
    return [file[begin:end] for begin, end in zip([0, *starts[1:]], ends, strict=True)]


def _ogg_starts(file: memoryview, start: int, budget: DecodingBudget) -> list[int]:
    """The positions at which the pieces of a chained Ogg begin. Each stream of a piece has a first page. These first
    pages follow each other immediately at the beginning of the piece.
    """
    starts = []
    end_of_first_pages = -1
    for match in _charged(_OGG_FIRST_PAGE, file, start, budget):
        if match.start() != end_of_first_pages:
            starts.append(match.start())
        end_of_first_pages = _end_of_ogg_page(file, match.start())
    return starts


def _end_of_ogg_page(file: memoryview, at: int) -> int:
    segments = at + _OGG_SEGMENTS_AT
    count = file[segments] if segments < len(file) else 0
    return segments + 1 + count + sum(file[segments + 1 : segments + 1 + count])
