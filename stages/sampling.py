"""Draws ids from logits by the reference's filters, repeatably by seed and whatever else is in the batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b

import torch
from msgspec import Struct

from stages.messages import Sampling

# A temperature below this is greedy: what it leaves beside the best token is beyond float32, and so is the division.
LEAST_TEMPERATURE = 1e-6


def is_greedy(params: Sampling) -> bool:
    """Whether the largest logit is always picked."""
    return params.temperature < LEAST_TEMPERATURE or params.top_k == 1


def seed_key(seed: int | None) -> bytes:
    """The key of one request's draws: its seed (any 128-bit signed integer), or a fresh one."""
    chosen = seed if seed is not None else int.from_bytes(os.urandom(8), "little")
    return chosen.to_bytes(16, "little", signed=True)


def uniform(key: bytes, *place: int) -> float:
    """The draw for one place, such as (token,) or (frame, codebook), in [0, 1): a hash of the key and the place."""
    digest = blake2b(b"".join(index.to_bytes(8, "little") for index in place), key=key, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


class Filters(Struct, frozen=True):
    """The sampling parameters of a batch as tensors [rows, 1], made once and used for many rows of logits.

    Attributes:
        temperature: float32, positive.
        top_k: int64, candidates kept, at least 1 (and those that tie with the last); None where no row limits them.
        widest: The largest `top_k`.
        top_p: float64, nucleus mass; None where every row's is 1.
        min_p: float64, least probability relative to the best; None where every row's is 0.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor | None
    widest: int
    top_p: torch.Tensor | None
    min_p: torch.Tensor | None

    @classmethod
    def of(cls, params: Sequence[Sampling], vocab: int, device: torch.device | str) -> Filters:
        """For logits [len(params), vocab] on `device`; rows that are greedy get temperature 1 and mean nothing."""

        def column(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        top_k = [min(p.top_k or vocab, vocab) for p in params]
        return cls(
            temperature=column([1.0 if is_greedy(p) else p.temperature for p in params], torch.float32),
            widest=max(top_k),
            top_k=column(top_k, torch.int64) if min(top_k) < vocab else None,
            top_p=column([p.top_p for p in params], torch.float64) if any(p.top_p < 1.0 for p in params) else None,
            min_p=column([p.min_p for p in params], torch.float64) if any(p.min_p for p in params) else None,
        )

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """What is left of float32 logits [rows, vocab] after temperature, top-k, top-p and min-p, in this order.

        The filters are the reference's logits warpers. Float64 [rows, vocab], zero where filtered out, and not
        normalised again after top-p and min-p. Never waits for the device.
        """
        logits = logits / self.temperature
        if self.top_p is None:
            if self.top_k is not None:
                largest = torch.topk(logits, self.widest, dim=-1).values
                logits = logits.masked_fill(logits < largest.gather(1, self.top_k - 1), -torch.inf)
            return self._likely(torch.softmax(logits, dim=-1, dtype=torch.float64))
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ordered = ordered.masked_fill(ordered < ordered.gather(1, self.top_k - 1), -torch.inf)
        probabilities = torch.softmax(ordered, dim=-1, dtype=torch.float64)
        before = probabilities.cumsum(dim=-1) - probabilities
        outside = (before >= self.top_p) & (self.top_p < 1.0)
        outside[:, 0] = False
        probabilities = probabilities.masked_fill_(outside, 0.0)
        return self._likely(torch.empty_like(probabilities).scatter_(1, order, probabilities))

    def _likely(self, probabilities: torch.Tensor) -> torch.Tensor:
        if self.min_p is None:
            return probabilities
        best = probabilities.max(dim=-1, keepdim=True).values
        return probabilities.masked_fill(probabilities < self.min_p * best, 0.0)


def pick(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One id for each row of float64 probabilities [rows, vocab] and uniforms [rows, 1]; int64 [rows].

    By inverse CDF over the vocabulary in id order and in float64, so that rounding noise from another batch shape
    changes a pick only with about its own probability.
    """
    cumulative = probabilities.cumsum(dim=-1)
    # The first id whose cumulative probability exceeds the target: it never has probability zero.
    picks = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    return picks.clamp_(max=probabilities.shape[-1] - 1)[:, 0]
