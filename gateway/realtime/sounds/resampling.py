"""Changes the sampling rate of a stream of 16-bit samples, exactly and with little delay.

soxr, which resamples files in this project, works in blocks. If soxr gets 20 ms of telephone sound at a time, its
output lags up to 115 ms behind its input. The user would wait for this time at the end of each turn. The filter in this
module has a delay of 4 ms, which is half the length of the filter.

The filter's coefficients are integers. Products and sums of integers are exact in 64-bit floats up to 2**53. So two
things do not change the result: the order in which a processor adds, and the division of the stream into chunks.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

DELAY_MS = 4
# Shape of the window: the frequencies that must be removed are attenuated by about 90 dB.
_KAISER_BETA = 9.0
# Width, in Hz, of the band between the frequencies that pass and the frequencies that are removed. This width follows
# from the length of the filter, 2 * `DELAY_MS`.
_TRANSITION_HZ = 714
_SCALE = 1 << 24  # the coefficients are multiplied by this number


class Resampler:
    """Resamples one stream.

    Args:
        source, target: Samples per second of the input and of the output; multiples of 8000.
    """

    def __init__(self, source: int, target: int) -> None:
        common = math.gcd(source, target)
        self._up, self._down = target // common, source // common
        self._half = source * DELAY_MS // 1_000
        self._bank = _filter_bank(source, target)
        self._pending: numpy.ndarray  # the inputs that later outputs need
        self._first: int  # the number of the first pending input
        self._taken: int  # number of inputs so far
        self._made: int  # number of outputs so far
        self._begin()

    def feed(self, pcm: numpy.ndarray) -> numpy.ndarray:
        """Resample more input (int16 [n]). Returns the outputs that can be computed now: int16 [m], possibly empty."""
        import numpy

        self._pending = numpy.concatenate([self._pending, pcm.astype(numpy.float64)])
        self._taken += len(pcm)
        # Output k is at position k * down / up of the input. Let i be the last input that is not after this position.
        # The output needs `half` inputs after i.
        complete = max(0, (self._taken - self._half) * self._up)
        return self._make(-(-complete // self._down))

    def finish(self) -> numpy.ndarray:
        """Returns the remaining outputs (int16 [m]), as if silence followed, and begins a new stream."""
        import numpy

        end = -(-self._taken * self._up // self._down)
        self._pending = numpy.concatenate([self._pending, numpy.zeros(self._half + 1)])
        rest = self._make(end)
        self._begin()
        return rest

    def _begin(self) -> None:
        import numpy

        self._pending = numpy.zeros(self._half - 1)  # as if silence came before the stream
        self._first = 1 - self._half
        self._taken = self._made = 0

    def _make(self, end: int) -> numpy.ndarray:
        """Compute the outputs with the numbers from `_made` to `end` - 1. (`_made` is the number of outputs so far.)"""
        import numpy

        if end <= self._made:
            return numpy.empty(0, numpy.int16)
        made = numpy.empty(end - self._made, numpy.float64)
        windows = numpy.lib.stride_tricks.sliding_window_view(self._pending, 2 * self._half)
        for number in range(self._made, min(self._made + self._up, end)):
            # The outputs `number`, `number` + `up`, `number` + 2 * `up` and so on have the same coefficients. From one
            # of these outputs to the next, the position in the input increases by `down`.
            start = number * self._down // self._up - self._half + 1 - self._first
            count = len(range(number, end, self._up))
            coefficients = self._bank[number * self._down % self._up]
            made[number - self._made :: self._up] = windows[start :: self._down][:count] @ coefficients
        self._made = end
        needed = self._made * self._down // self._up - self._half + 1
        self._pending = self._pending[max(0, needed - self._first) :]
        self._first = max(self._first, needed)
        return numpy.clip(numpy.rint(made / _SCALE), -32_768, 32_767).astype(numpy.int16)


@cache
def _filter_bank(source: int, target: int) -> numpy.ndarray:
    """The filter's coefficients, which are whole numbers: float64 [up, taps].

    Let i be the last input that is not after an output. There are `up` possible distances from i to the output. Each
    row contains the coefficients for one of these distances.

    The filter is a windowed sinc. The sum of each row is exactly `_SCALE`, so the filter does not change a constant
    signal.
    """
    import numpy

    up = target // math.gcd(source, target)
    half = source * DELAY_MS // 1_000
    cutoff = (min(source, target) - _TRANSITION_HZ) / source  # twice the cut-off frequency, in cycles per input sample
    distance = numpy.arange(1 - half, half + 1) - numpy.arange(up)[:, None] / up
    window = numpy.i0(_KAISER_BETA * numpy.sqrt(numpy.clip(1 - (distance / half) ** 2, 0, None)))
    exact = numpy.sinc(cutoff * distance) * window
    bank = numpy.rint(exact / exact.sum(axis=1, keepdims=True) * _SCALE)
    bank[:, half - 1] += _SCALE - bank.sum(axis=1)
    return bank
