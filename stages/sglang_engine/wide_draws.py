"""Filters one row of logits on a CPU without sorting a whole vocabulary.

`sampling_filters` handles all rows of a batch together and never makes the host wait for the device. For a filter by
nucleus mass, it sorts every candidate of every row. With 150,000 candidates, this sort takes twenty times as long as
all other steps. On a CPU, the host may wait, and a single row fits into the cache. So this module finds the nucleus
with a histogram, and sorts only the candidates of one bin. The resulting probabilities are the same.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from stages.messages import Sampling
from stages.sampling_filters import is_greedy

# A row with fewer candidates is left to `sampling_filters`. For such rows, it is faster to handle a whole batch at
# once.
LEAST_VOCABULARY = 16_384

# The histogram's bins divide this range of logits below the largest logit. Candidates farther below have a probability
# of less than e^-64, and share the last bin.
_RANGE = 64.0
_BINS = 4096


def is_wide(logits: torch.Tensor) -> bool:
    """Whether to filter `logits` [rows, vocabulary] with this module."""
    return logits.device.type == "cpu" and logits.shape[-1] >= LEAST_VOCABULARY


def row_probabilities(logits: torch.Tensor, params: Sampling) -> torch.Tensor:
    """Probabilities, float64 [vocabulary], from float32 logits [vocabulary] and the filters of `params`.

    The probabilities equal those of `Filters.probabilities`.
    """
    assert not is_greedy(params)
    logits = logits / params.temperature
    least = _least(logits, params)
    if least > -math.inf:
        below = float(torch.nextafter(torch.tensor(least), torch.tensor(-math.inf)))
        logits = functional.threshold(logits, below, -math.inf)
    return torch.softmax(logits, dim=-1, dtype=torch.float64)


def _least(logits: torch.Tensor, params: Sampling) -> float:
    """The smallest logit that passes all filters. The logits have already been divided by the temperature."""
    least = -math.inf
    if params.top_k and params.top_k < len(logits):
        largest = torch.topk(logits, params.top_k).values
        least = float(largest[-1])
        if params.top_p < 1.0:
            # other candidates with the logit `largest[-1]` are kept too, but they do not count for the nucleus
            own = torch.softmax(largest, dim=-1, dtype=torch.float64)
            least = max(least, float(largest[_inside(own, 0.0, params.top_p) - 1]))
    elif params.top_p < 1.0:
        least = _nucleus(logits, params.top_p)
    if params.min_p:
        # the sum is float32, as in `Filters.probabilities`
        floor = logits.max() + torch.tensor(math.log(params.min_p), dtype=torch.float32)
        least = max(least, float(floor))
    return least


def _nucleus(logits: torch.Tensor, top_p: float) -> float:
    """The smallest logit in the nucleus. The nucleus is the smallest set of the likeliest candidates whose total
    probability reaches `top_p`.
    """
    mass = torch.softmax(logits, dim=-1, dtype=torch.float64)
    bins = logits.max().sub(logits).mul_(_BINS / _RANGE).clamp_(max=_BINS - 1).int()
    sums = torch.bincount(bins, weights=mass, minlength=_BINS)
    reached = sums.cumsum(dim=0)
    crossing = int(torch.searchsorted(reached, top_p))
    if crossing == _BINS:  # because of rounding, the sum of all masses is below `top_p`
        return -math.inf
    before = float(reached[crossing - 1]) if crossing else 0.0
    places = (bins == crossing).nonzero()[:, 0]
    candidates, order = logits[places].sort(descending=True)
    return float(candidates[_inside(mass[places][order], before, top_p) - 1])


def _inside(mass: torch.Tensor, before: float, top_p: float) -> int:
    """Number of candidates of one bin that belong to the nucleus; at least one. `mass` has the sorted probabilities of
    the bin's candidates. `before` is the total probability of the likelier candidates, which are in earlier bins.
    """
    return max(1, int((mass.cumsum(dim=0) - mass + before < top_p).sum()))
