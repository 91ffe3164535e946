"""Filters logits as the reference does, before an id is drawn from them. Also generates random numbers from a seed."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from hashlib import blake2b

import torch
from msgspec import Struct

from stages.messages import Sampling

# A temperature below this number counts as greedy. At such a temperature, all probabilities except the largest are too
# small for float32, and the logits divided by the temperature are too large for float32.
LEAST_TEMPERATURE = 1e-6

# A nucleus mass (top-p) with which all tokens are kept: the sum of all probabilities never reaches 2.
ALL = 2.0


def is_greedy(params: Sampling) -> bool:
    """Whether the largest logit is always picked."""
    return params.temperature < LEAST_TEMPERATURE or params.top_k == 1


def seed_key(seed: int | None) -> bytes:
    """The key for one request's random draws: its seed (any 128-bit signed integer) or, without a seed, a random
    key.
    """
    chosen = seed if seed is not None else int.from_bytes(os.urandom(8), "little")
    return chosen.to_bytes(16, "little", signed=True)


def random_numbers(key: bytes, *place: int, count: int) -> list[float]:
    """Random numbers in [0, 1) for one place, such as (token,) or (frame, codebook). `count` is their number, which is
    at most eight.

    The numbers are parts of a hash of the key and the place.
    """
    packed = struct.pack(f"<{len(place)}Q", *place)
    parts = struct.unpack(f"<{count}Q", blake2b(packed, key=key, digest_size=8 * count).digest())
    return [(part >> 11) / (1 << 53) for part in parts]


class Filters(Struct, frozen=True):
    """The sampling parameters of a batch as tensors [rows, 1], made once and used for many rows of logits.

    Attributes:
        temperature: float32, positive.
        top_k: int64, number of candidates that are kept, at least 1. Further candidates are kept if their logit equals
            the logit of the last kept candidate. None if no row limits the number.
        widest: The largest `top_k`.
        top_p: float64, nucleus mass; above 1 for a row that keeps all candidates. None if every row keeps all
            candidates.
        min_p: float32, natural logarithm of the minimum probability relative to the best candidate. None if no row sets
            such a minimum.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor | None
    widest: int
    top_p: torch.Tensor | None
    min_p: torch.Tensor | None

    @classmethod
    def of(cls, params: Sequence[Sampling], vocab: int, device: torch.device | str) -> Filters:
        """The filters for logits [len(params), vocab] on `device`. The results for greedy rows have no meaning."""

        def column(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        top_k = [1 if is_greedy(p) else min(p.top_k or vocab, vocab) for p in params]
        top_p = [p.top_p if p.top_p < 1.0 else ALL for p in params]
        min_p = [math.log(p.min_p) if p.min_p else -math.inf for p in params]
        return cls(
            temperature=column([1.0 if is_greedy(p) else p.temperature for p in params], torch.float32),
            widest=max(top_k),
            top_k=column(top_k, torch.int64) if min(top_k) < vocab else None,
            top_p=column(top_p, torch.float64) if min(top_p) < ALL else None,
            min_p=column(min_p, torch.float32) if max(min_p) > -math.inf else None,
        )

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities from float32 logits [rows, vocab] after temperature, top-k, top-p and min-p, in this order.

        The result is float64 [rows, vocab], with zero for each token that a filter removes. The filters keep the same
        tokens as the reference's logits warpers, but compute them in another way. Each filter becomes a threshold: the
        smallest logit that passes the filter. To find this threshold, only the `widest` largest logits are sorted,
        because sorting a whole vocabulary takes longer than all other steps. The host never waits for the device.
        """
        logits = logits / self.temperature
        if self.top_k is not None or self.top_p is not None or self.min_p is not None:
            logits = logits.masked_fill(logits < self._least(logits), -torch.inf)
        return torch.softmax(logits, dim=-1, dtype=torch.float64)

    def _least(self, logits: torch.Tensor) -> torch.Tensor:
        """For each row, the smallest logit that passes all filters: [rows, 1]."""
        largest = torch.topk(logits, self.widest, dim=-1).values
        least = largest[:, -1:] if self.top_k is None else largest.gather(1, self.top_k - 1)
        if self.top_p is not None:
            mass = torch.softmax(largest.masked_fill(largest < least, -torch.inf), dim=-1, dtype=torch.float64)
            before = mass.cumsum(dim=-1) - mass
            inside = (before < self.top_p).sum(dim=-1, keepdim=True).clamp_(min=1)
            least = torch.maximum(least, largest.gather(1, inside - 1))
        if self.min_p is not None:
            least = torch.maximum(least, largest[:, :1] + self.min_p)
        return least
