"""Counts the work of decoding one media item while it is decoded, and ends decoding that costs too much.

One unit of work is the decoding of one pixel, or of one sample of one channel. Parts of a file that a decoder must
visit without getting a new pixel or sample cost work too: see `PACKET_WORK` and `pass_work`. So every costly file is
charged, also if it makes the decoder visit the same pixels again and again, or if it has very many parts that are
almost empty.
"""

from __future__ import annotations

from collections.abc import Callable

from stages.preprocessing import cpu_time

# Work for one packet of a container, or for another part that has a size of its own, whatever the part contains.
PACKET_WORK = 1024

# Work of a piece of a sound file, for which a decoder and a resampler are set up.
PIECE_WORK = 16 * PACKET_WORK

# Work of one pass of a JPEG decoder over coefficients that do not change, as a share of the work of decoding their
# pixels.
_PASSES_PER_PIXEL = 8

# Number of pixels or samples, and number of bytes of a file, that the slowest decoders of usual formats decode in a
# second on one core.
WORK_PER_SECOND = 16_000_000
BYTES_PER_SECOND = 4_000_000


class DecodingBudget:
    """The work that may still be spent on one media item.

    Attributes:
        spent: Work that was charged so far.

    Args:
        limit: Maximum work.
        refusal: Makes the error for a media item that costs more.
    """

    def __init__(self, limit: int, refusal: Callable[[], Exception]) -> None:
        self.spent = 0
        self._limit = limit
        self._refusal = refusal

    def charge(self, work: int) -> None:
        """Spend work, if possible before the decoder does the work. Each unit also allows the process some CPU time.

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
    """Work of one pass over already decoded coefficients."""
    return samples // _PASSES_PER_PIXEL
