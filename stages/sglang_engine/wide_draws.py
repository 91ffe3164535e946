"""Draws an id from one row of logits on a CPU without sorting a whole vocabulary.

`filtered_draws` handles all rows of a batch together and never makes the host wait for the device. For a filter by
nucleus mass, it sorts every candidate of every row. With 150,000 candidates, this sort takes twenty times as long as
all other steps. On a CPU, nothing is gained by keeping the host from waiting, and a row at a time stays in the cache.
So this module finds the nucleus through a histogram, and sorts only the candidates of one of its bins. The result is
the same id.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from stages.filtered_draws import is_greedy
from stages.messages import Sampling

# With fewer candidates in a row, `filtered_draws` is faster for a whole batch.
LEAST_VOCABULARY = 16_384

# The histogram's bins divide this range of logits below the largest logit. Candidates that are farther below have a
# probability of less than e^-64; they share the last bin.
_RANGE = 64.0
_BINS = 4096


def is_wide(logits: torch.Tensor) -> bool:
    """Whether rows of `logits` [rows, vocabulary] should be drawn by this module."""
    return logits.device.type == "cpu" and logits.shape[-1] >= LEAST_VOCABULARY


def draw_from_row(logits: torch.Tensor, params: Sampling, uniform: float) -> int:
    """The id for one uniform draw in [0, 1), from float32 logits [vocabulary] and the filters of `params`.

    The filters and the inversion of the CDF are those of `filtered_draws`.
    """
    assert not is_greedy(params)
    logits = logits / params.temperature
    least = _least(logits, params)
    if least > -math.inf:
        below = float(torch.nextafter(torch.tensor(least), torch.tensor(-math.inf)))
        logits = functional.threshold(logits, below, -math.inf)
    cumulative = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    return min(int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)), len(logits) - 1)


def _least(logits: torch.Tensor, params: Sampling) -> float:
    """The least of the logits, which temperature has divided, that passes all filters."""
    least = -math.inf
    if params.top_k and params.top_k < len(logits):
        largest = torch.topk(logits, params.top_k).values
        least = float(largest[-1])
        if params.top_p < 1.0:
            # candidates that tie with the last are kept, but they do not count for the nucleus
            own = torch.softmax(largest, dim=-1, dtype=torch.float64)
            least = max(least, float(largest[_inside(own, 0.0, params.top_p) - 1]))
    elif params.top_p < 1.0:
        least = _nucleus(logits, params.top_p)
    if params.min_p:
        # in float32, as `Filters.probabilities` adds the two
        floor = logits.max() + torch.tensor(math.log(params.min_p), dtype=torch.float32)
        least = max(least, float(floor))
    return least


def _nucleus(logits: torch.Tensor, top_p: float) -> float:
    """The least logit of the smallest set of likeliest candidates whose mass reaches `top_p`."""
    mass = torch.softmax(logits, dim=-1, dtype=torch.float64)
    bins = logits.max().sub(logits).mul_(_BINS / _RANGE).clamp_(max=_BINS - 1).int()
    sums = torch.bincount(bins, weights=mass, minlength=_BINS)
    reached = sums.cumsum(dim=0)
    crossing = int(torch.searchsorted(reached, top_p))
    if crossing == _BINS:  # rounding kept the sum of all masses below `top_p`
        return -math.inf
    before = float(reached[crossing - 1]) if crossing else 0.0
    places = (bins == crossing).nonzero()[:, 0]
    candidates, order = logits[places].sort(descending=True)
    return float(candidates[_inside(mass[places][order], before, top_p) - 1])


def _inside(mass: torch.Tensor, before: float, top_p: float) -> int:
    """The number of candidates, at least one, that the nucleus needs from `mass`, which is sorted. Likelier candidates
    have the mass `before`.
    """
    return max(1, int((mass.cumsum(dim=0) - mass + before < top_p).sum()))
