"""Picks the residual codes of a batch of frames. The codes of a frame depend on the frame's number, and on the sampling
parameters and the seed of its utterance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec import Struct

from stages.filtered_draws import Filters, is_greedy, pick, seed_key, uniform
from stages.messages import Sampling


class Draws:
    """An utterance's sampling parameters, and its random draw for every codebook of every frame.

    A draw depends on the seed, the frame and the codebook, and on nothing else.
    """

    __slots__ = ("_key", "params")

    def __init__(self, params: Sampling) -> None:
        self.params = params
        self._key = seed_key(params.seed)

    def frame(self, number: int, codebooks: int) -> list[float]:
        """One draw in [0, 1) for each of a frame's residual codebooks; meaningless if the utterance is greedy."""
        if is_greedy(self.params):
            return [0.0] * codebooks
        return [uniform(self._key, number, codebook) for codebook in range(codebooks)]


class CodeChoice(Struct, frozen=True):
    """Picks the codes of one batch. The network calls the choice once for each residual codebook, with the codebook's
    logits.

    Attributes:
        filters: The filters of all rows; None if all rows are greedy.
        greedy: bool [rows], the rows that pick the largest logit; None if there is no greedy row.
        uniforms: float64 [rows, residual codebooks].
    """

    filters: Filters | None
    greedy: torch.Tensor | None
    uniforms: torch.Tensor | None

    @classmethod
    def of(cls, rows: Sequence[tuple[Draws, int]], codebooks: int, vocab: int, device: torch.device) -> CodeChoice:
        """The choice for a batch of rows. Each row is given as the draws of its utterance and a frame number, and gets
        `codebooks` residual codes. There are `vocab` possible codes.
        """
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
        """The largest number of candidates that the sampling parameters of any row allow."""
        return 1 if self.filters is None else self.filters.widest

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors of the choice that are not None, in the order of the arguments of `holding`; empty if all rows
        are greedy.
        """
        filters = self.filters
        if filters is None:
            return ()
        every = (filters.temperature, filters.top_k, filters.top_p, filters.min_p, self.greedy, self.uniforms)
        return tuple(each for each in every if each is not None)

    def holding(self, *tensors: torch.Tensor) -> CodeChoice:
        """A copy of this choice with `tensors` in place of this choice's tensors.

        Pass all six tensors; if all rows are greedy, pass no tensors, and the choice itself is returned.
        """
        if self.filters is None:
            return self
        temperature, top_k, top_p, min_p, greedy, uniforms = tensors
        return CodeChoice(Filters(temperature, top_k, self.filters.widest, top_p, min_p), greedy, uniforms)

    def __call__(self, logits: torch.Tensor, codebook: int) -> torch.Tensor:
        """Codes int64 [rows] from logits [rows, vocab] of residual codebook `codebook`, counted from 0."""
        if self.filters is None or self.uniforms is None:
            return logits.argmax(-1)
        drawn = pick(self.filters.probabilities(logits.float()), self.uniforms[:, codebook : codebook + 1])
        return drawn if self.greedy is None else torch.where(self.greedy, logits.argmax(-1), drawn)
