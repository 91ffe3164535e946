"""Picks the residual codes of a batch of frames, each by its own voice's parameters, seed and frame number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec import Struct

from stages.messages import Sampling
from stages.sampling import Filters, is_greedy, pick, seed_key, uniform


class Draws:
    """One voice's way of picking: its parameters, and a draw for every codebook of every frame.

    A draw depends on the seed, the frame and the codebook, and on nothing else.
    """

    __slots__ = ("_key", "params")

    def __init__(self, params: Sampling) -> None:
        self.params = params
        self._key = seed_key(params.seed)

    def frame(self, number: int, codebooks: int) -> list[float]:
        """Draws in [0, 1) for so many residual codebooks of a frame; of no meaning where the voice is greedy."""
        if is_greedy(self.params):
            return [0.0] * codebooks
        return [uniform(self._key, number, codebook) for codebook in range(codebooks)]


class CodeChoice(Struct, frozen=True):
    """How the codes of one batch are picked; called with the logits of one residual codebook after the other.

    Attributes:
        filters: Of all rows; None where all are greedy.
        greedy: bool [rows], rows that take the largest logit; None where none does.
        uniforms: float64 [rows, residual codebooks].
    """

    filters: Filters | None
    greedy: torch.Tensor | None
    uniforms: torch.Tensor | None

    @classmethod
    def of(cls, rows: Sequence[tuple[Draws, int]], codebooks: int, vocab: int, device: torch.device) -> CodeChoice:
        """For (voice, frame number) pairs and logits [len(rows), vocab] of so many residual codebooks."""
        params = [draws.params for draws, _ in rows]
        greedy = [is_greedy(each) for each in params]
        if all(greedy):
            return cls(None, None, None)
        uniforms = [draws.frame(number, codebooks) for draws, number in rows]
        return cls(
            filters=Filters.of(params, vocab, device),
            greedy=torch.tensor(greedy, device=device) if any(greedy) else None,
            uniforms=torch.tensor(uniforms, dtype=torch.float64, device=device),
        )

    @property
    def widest(self) -> int:
        """The most codes that any row is picked from, as far as that can be told before."""
        return 1 if self.filters is None else self.filters.widest

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What it holds where every filter is set and some rows are greedy; nothing where all are."""
        filters = self.filters
        if filters is None:
            return ()
        every = (filters.temperature, filters.top_k, filters.top_p, filters.min_p, self.greedy, self.uniforms)
        return tuple(each for each in every if each is not None)

    def holding(self, *tensors: torch.Tensor) -> CodeChoice:
        """The same choice with other `tensors`."""
        if self.filters is None:
            return self
        temperature, top_k, top_p, min_p, greedy, uniforms = tensors
        return CodeChoice(Filters(temperature, top_k, self.filters.widest, top_p, min_p), greedy, uniforms)

    def __call__(self, logits: torch.Tensor, codebook: int) -> torch.Tensor:
        """Codes int64 [rows] out of logits [rows, vocab] for residual codebook `codebook`, counted from 0."""
        if self.filters is None or self.uniforms is None:
            return logits.argmax(-1)
        drawn = pick(self.filters.probabilities(logits.float()), self.uniforms[:, codebook : codebook + 1])
        return drawn if self.greedy is None else torch.where(self.greedy, logits.argmax(-1), drawn)
