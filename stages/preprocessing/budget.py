"""Counts the work of decoding a media item while it is decoded, and stops the decoding if the work exceeds a limit.

One unit of work is the decoding of one pixel, or of one sample of one channel. Some parts of a file take a decoder's
time but yield no new pixel or sample. They cost work too: see `PACKET_WORK` and `pass_work`. So a file cannot occupy a
decoder for long with thousands of almost empty parts, or with pixels that are visited again and again.
"""

from __future__ import annotations

from collections.abc import Callable

from stages.preprocessing import cpu_time

# Each part of a file counts as at least this much work. A part is a packet of a container, or anything else in the file
# that has its own size.
PACKET_WORK = 1024

# Setting up a decoder and a resampler for one piece of a sound file counts as this much work.
PIECE_WORK = 16 * PACKET_WORK

# A progressive JPEG decoder passes over the coefficients of its pixels several times. This number of passes takes as
# long as decoding the pixels once.
_PASSES_PER_PIXEL = 8

# In a second on one core, a decoder can decode `WORK_PER_SECOND` pixels or samples, or read `BYTES_PER_SECOND` bytes of
# a file. Even the slowest decoders of common formats reach this speed.
WORK_PER_SECOND = 16_000_000
BYTES_PER_SECOND = 4_000_000


class DecodingBudget:
    """A limit on the work of decoding one media item. To charge work means to add it to the work that has been counted.

    Attributes:
        spent: Work that has been charged so far.

    Args:
        limit: Maximum work.
        refusal: Makes the error for a media item whose work exceeds `limit`.
    """

    def __init__(self, limit: int, refusal: Callable[[], Exception]) -> None:
        self.spent = 0
        self._limit = limit
        self._refusal = refusal

    def charge(self, work: int) -> None:
        """Charge work to the budget. If possible, call this before the decoder does the work. Each unit of work also
        extends the CPU time that the process may use.

        Raises:
            OmniError: The error that `refusal` makes, if the limit is exceeded.
        """
        self.spent += work
        if self.spent > self._limit:
            raise self._refusal()
        allow_time_for(work)


def allow_time_for(work: int) -> None:
    """Extend the CPU time that the process may use. `charge` calls this function. Other code may call it for work that
    is not charged to a budget, if another limit applies to this work.
    """
    cpu_time.extend(work / WORK_PER_SECOND)


def pass_work(samples: int) -> int:
    """Work of one further pass over the coefficients of `samples` decoded samples."""
    return samples // _PASSES_PER_PIXEL
