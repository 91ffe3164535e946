"""Lists the ids that a packed mask allows or forbids, and caches the lists for all texts and grammars.

The same masks occur again and again: in texts with the same grammar, and inside the JSON strings of different grammars.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, TypeAlias

import numpy
from numpy.typing import NDArray

# Largest number of ids in all cached lists together. An id has 8 bytes.
_CACHED_IDS = 1 << 21

# One bit for each id, least significant bit first.
_Bits: TypeAlias = NDArray[numpy.uint32]
_SHIFT = 5
_WORD = 1 << _SHIFT


class Mask(NamedTuple):
    """The ids that may come next.

    Attributes:
        ids: int64, ascending. These are the allowed ids if at most half of the 32-bit words of the mask contain an
            allowed id. Otherwise, these are the forbidden ids. So usually the shorter of the two lists is stored.
        allowed: Whether `ids` are the allowed ids.
    """

    ids: NDArray[numpy.int64]
    allowed: bool


class Masks:
    """Converts masks of one vocabulary into lists of ids, and keeps the latest lists.

    Args:
        size: Number of ids.
        end: Id of the token that ends a text.

    Attributes:
        size: Number of ids.
        everything: The packed mask that allows every id.
    """

    def __init__(self, size: int, end: int) -> None:
        self.size = size
        self.everything = b"\xff" * (-(-size // _WORD) * _WORD // 8)
        self._end = end
        self._lists: OrderedDict[tuple[bytes, bool], Mask] = OrderedDict()
        self._ids = 0

    def listed(self, packed: bytes, *, stay: bool) -> Mask:
        """The ids of a mask.

        Args:
            packed: One bit for each id. The bit is 1 if the id is allowed. The bits are in whole words of 32 bits,
                least significant bit first.
            stay: Whether to forbid the end of the text. If the mask allows only the end, the end is allowed in spite of
                `stay`.
        """
        key = (packed, stay)
        mask = self._lists.get(key)
        if mask is not None:
            self._lists.move_to_end(key)
            return mask
        bits: _Bits = numpy.frombuffer(packed, numpy.uint32)
        mask = self._lists[key] = self._list(self._without_end(bits) if stay else bits)
        self._ids += len(mask.ids)
        while self._ids > _CACHED_IDS:
            _, oldest = self._lists.popitem(last=False)
            self._ids -= len(oldest.ids)
        return mask

    def _list(self, bits: _Bits) -> Mask:
        some = numpy.flatnonzero(bits)
        if 2 * len(some) <= len(bits):
            return Mask(_ids(bits, some), allowed=True)
        bits = ~bits
        ids = _ids(bits, numpy.flatnonzero(bits))
        return Mask(ids[: numpy.searchsorted(ids, self.size)], allowed=False)

    def _without_end(self, bits: _Bits) -> _Bits:
        """A mask that forbids the end token. If the end token is the only allowed id, the mask stays as it is."""
        word, bit = divmod(self._end, _WORD)
        without = bits.copy()
        without[word] &= ~numpy.uint32(1 << bit)
        return without if without.any() else bits


def _ids(bits: _Bits, words: NDArray[numpy.int64]) -> NDArray[numpy.int64]:
    """The ids whose bits are set. `words` contains the indices of the words that are not 0."""
    places = numpy.flatnonzero(numpy.unpackbits(bits[words].view(numpy.uint8), bitorder="little"))
    return words[places >> _SHIFT] * _WORD + (places & (_WORD - 1))
