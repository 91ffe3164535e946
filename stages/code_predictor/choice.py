"""Picks the residual codes of a batch of frames. The codes of a frame depend only on the logits, on the frame's number,
and on its utterance's sampling parameters and seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec import Struct

from stages.messages import Sampling
from stages.sampling_filters import Filters, is_greedy, random_numbers, seed_key


class Draws:
    """An utterance's sampling parameters, and its random draw for every codebook of every frame.

    A draw depends on the seed, the frame and the codebook, and on nothing else.
    """

    __slots__ = ("_key", "params")

    def __init__(self, params: Sampling) -> None:
        self.params = params
        self._key = seed_key(params.seed)

    def frame(self, number: int, codebooks: int) -> list[float]:
        """One draw in [0, 1) for each residual codebook of a frame. The draws have no meaning if the utterance is
        greedy.
        """
        if is_greedy(self.params):
            return [0.0] * codebooks
        return [random_numbers(self._key, number, codebook, count=1)[0] for codebook in range(codebooks)]


class CodeChoice(Struct, frozen=True):
    """Picks the codes of one batch. The network calls this object once for each residual codebook, with the codebook's
    logits.

    Attributes:
        filters: The filters of all rows; None if all rows are greedy.
        greedy: bool [rows], the rows that pick the largest logit; None if there is no greedy row.
        uniforms: float64 [rows, residual codebooks], a random draw for each code; None if all rows are greedy.
    """

    filters: Filters | None
    greedy: torch.Tensor | None
    uniforms: torch.Tensor | None

    @classmethod
    def of(cls, rows: Sequence[tuple[Draws, int]], codebooks: int, vocab: int, device: torch.device) -> CodeChoice:
        """Make the choice for a batch of rows. `rows` has a pair for each row: the draws of the row's utterance, and
        the number of the frame. `codebooks` is the number of residual codebooks. `vocab` is the number of different
        codes in a residual codebook.
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
        """The tensors of the choice that are not None, in the order of the parameters of `holding`. There are at most
        six tensors, and no tensors if all rows are greedy.
        """
        filters = self.filters
        if filters is None:
            return ()
        every = (filters.temperature, filters.top_k, filters.top_p, filters.min_p, self.greedy, self.uniforms)
        return tuple(each for each in every if each is not None)

    def holding(self, *tensors: torch.Tensor) -> CodeChoice:
        """A copy of this choice with `tensors` in place of this choice's tensors.

        Pass all six tensors: temperature, top_k, top_p, min_p, greedy and uniforms. If all rows are greedy, pass no
        tensors; the function then returns the choice itself.
        """
        if self.filters is None:
            return self
        temperature, top_k, top_p, min_p, greedy, uniforms = tensors
        return CodeChoice(Filters(temperature, top_k, self.filters.widest, top_p, min_p), greedy, uniforms)

    def __call__(self, logits: torch.Tensor, codebook: int) -> torch.Tensor:
        """Codes int64 [rows] of one residual codebook, from its logits [rows, vocab]. `codebook` is the number of the
        residual codebook, counted from 0.
        """
        if self.filters is None or self.uniforms is None:
            return logits.argmax(-1)
        drawn = pick(self.filters.probabilities(logits.float()), self.uniforms[:, codebook : codebook + 1])
        return drawn if self.greedy is None else torch.where(self.greedy, logits.argmax(-1), drawn)


def pick(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Pick one code for each row, int64 [rows], from float64 probabilities [rows, codes] and uniform draws [rows, 1].

    The function inverts the cumulative distribution function. For this, it adds up the probabilities in the order of
    the codes. The sums are float64. The probabilities have rounding errors, which depend on the shape of the batch.
    These errors move the boundaries between codes. So a draw that is very close to a boundary may pick the neighbouring
    code. This is rare, because a codebook is small and the filters leave few codes.
    """
    cumulative = probabilities.cumsum(dim=-1)
    # This picks the first code whose cumulative probability exceeds the target. So the probability of the picked code
    # is never zero.
    picks = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    return picks.clamp_(max=probabilities.shape[-1] - 1)[:, 0]
