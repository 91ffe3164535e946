"""Counts the work of decoding one media item while it is decoded, and ends decoding that costs too much.

One unit of work is the decoding of one pixel, or of one sample of one channel. Parts of a file that a decoder must
visit without getting a new pixel or sample cost work too: see `PACKET_WORK` and `pass_work`. So every costly file is
charged, even if its cost comes from pixels that the decoder visits again and again, or from very many parts that are
almost empty.
"""

from __future__ import annotations

from collections.abc import Callable

from stages.preprocessing import cpu_time

# Least work that is charged for one packet of a container, or for another part of a file that has its own size,
# whatever the part contains.
PACKET_WORK = 1024

# Work of a piece of a sound file, for which a decoder and a resampler are set up.
PIECE_WORK = 16 * PACKET_WORK

# Number of passes over unchanged coefficients that cost a JPEG decoder as much work as decoding the pixels of these
# coefficients once.
_PASSES_PER_PIXEL = 8

# Number of pixels or samples, and number of bytes of a file, that the slowest decoders of usual formats decode in a
# second on one core.
WORK_PER_SECOND = 16_000_000
BYTES_PER_SECOND = 4_000_000


class DecodingBudget:
    """A limit on the work of decoding one media item.

    Attributes:
        spent: Work that was charged so far.

    Args:
        limit: Maximum work.
        refusal: Makes the error for a media item that costs more than `limit`.
    """

    def __init__(self, limit: int, refusal: Callable[[], Exception]) -> None:
        self.spent = 0
        self._limit = limit
        self._refusal = refusal

    def charge(self, work: int) -> None:
        """Charge work to the budget, if possible before the decoder does the work. Each unit of work also allows the
        process some CPU time.

        Raises:
            OmniError: The error that `refusal` makes, if the limit is exceeded.
        """
        self.spent += work
        if self.spent > self._limit:
            raise self._refusal()
        allow_time_for(work)


def allow_time_for(work: int) -> None:
    """Allow the process CPU time for work that another limit bounds."""
    cpu_time.extend(work / WORK_PER_SECOND)


def pass_work(samples: int) -> int:
    """Work of one pass over the coefficients of `samples` samples that are already decoded."""
    return samples // _PASSES_PER_PIXEL
