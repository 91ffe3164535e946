"""Draws a token from probabilities. The token's id is drawn digit by digit, so that rounding errors hardly ever change
a draw.

Probabilities have rounding errors, which depend on the shape of the batch. The usual way is to divide [0, 1) into one
interval for each id, and to take the id in whose interval a random number falls. But the errors move thousands of
boundaries between intervals, so the number often falls into another interval. Therefore the id is chosen in steps. The
ids are the leaves of a tree, and each node of the tree has up to `RADIX` children. In each step, a new random number
chooses one child. The interval of a child is as long as the sum of the probabilities below it. So there are only a few
boundaries in each step. The boundaries hardly move, because the errors of many ids nearly cancel each other in a sum.
The probability of each id stays the same.

In simulations with 3,072 ids, the number of draws that rounding errors changed was fifteen to forty times smaller than
with the usual way.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from stages.compiled import compiled
from stages.sampling_filters import random_numbers

# Number of children of a node: the base of the digits.
RADIX = 16

Doubles = NDArray[np.float64]


def count_digits(vocabulary: int) -> int:
    """The number of digits of the largest id. One draw needs this number of random numbers."""
    digits = 1
    while RADIX**digits < vocabulary:
        digits += 1
    return digits


def draw_numbers(key: bytes, place: int, vocabulary: int) -> Doubles:
    """The random numbers in [0, 1) for one draw, float64 [digits]."""
    return np.array(random_numbers(key, place, count=count_digits(vocabulary)))


def draw_ids(probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Draw one id for each row, int64 [rows]. The host never waits for the device.

    Args:
        probabilities: float64 [rows, vocabulary]. Their sums need not be 1. An id with probability 0 is never drawn.
        numbers: float64 [rows, digits], from `draw_numbers`, on the same device.
    """
    if probabilities.device.type == "cpu":
        return torch.from_numpy(_draw_rows(probabilities.contiguous().numpy(), numbers.numpy()))
    return _draw_on_device(probabilities, numbers)


def _draw_on_device(probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """`draw_ids` on a GPU."""
    digits = numbers.shape[1]
    sums = [functional.pad(probabilities, (0, -probabilities.shape[1] % RADIX ** (digits - 1)))]
    for _ in range(digits - 1):
        sums.append(sums[-1].unflatten(1, (-1, RADIX)).sum(dim=-1))
    ids = torch.zeros(len(probabilities), 1, dtype=torch.int64, device=probabilities.device)
    for digit, below in enumerate(reversed(sums)):
        children = below.unflatten(1, (-1, RADIX if digit else below.shape[1]))
        own = children.gather(1, ids[:, :, None].expand(-1, -1, children.shape[2]))[:, 0]
        borders = own.cumsum(dim=-1)
        total = borders[:, -1:]
        chosen = (borders <= numbers[:, digit : digit + 1] * total).sum(dim=-1, keepdim=True)
        # Because of rounding, the product of the random number and `total` may be as large as `total`. In this case,
        # the last child whose probability is not 0 is chosen.
        ids = ids * RADIX + torch.minimum(chosen, (borders < total).sum(dim=-1, keepdim=True))
    return ids[:, 0]


@compiled
def _draw_rows(probabilities: Doubles, numbers: Doubles) -> NDArray[np.int64]:
    """`draw_ids` on a CPU."""
    rows, vocabulary = probabilities.shape
    ids = np.zeros(rows, np.int64)
    sums = np.empty(RADIX)
    for row in range(rows):
        size = RADIX ** (numbers.shape[1] - 1)  # number of ids below a child
        for number in numbers[row]:
            total = 0.0
            for child in range(RADIX):
                below = 0.0
                begin = ids[row] + child * size
                for id_ in range(begin, min(begin + size, vocabulary)):
                    below += probabilities[row, id_]
                sums[child] = below
                total += below
            chosen, border = 0, 0.0
            for child in range(RADIX):
                if sums[child] > 0.0:
                    chosen = child
                    border += sums[child]
                    if border > number * total:
                        break
            ids[row] += chosen * size
            size //= RADIX
    return ids
