"""How far what a stage made is from what the reference makes of the same, as a few numbers that rounding leaves steady.

A router with two experts nearly equal picks another one in bfloat16, and then a whole token is off. So medians are
looked at first, which such tokens do not move, and tails separately. Every number is smaller where the stage is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy
import torch

Figures = dict[str, float]


@dataclass
class Distances:
    """Distances of single results, each with the group it belongs to."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, group: str, distances: Iterable[float]) -> None:
        self.values.setdefault(group, []).extend(distances)

    def figures(self, what: str) -> Figures:
        """The median of all and, where there are several, of each group; the 90th percentile of all."""
        together = [value for group in self.values.values() for value in group]
        figures = {f"{what}: median": float(numpy.median(together))}
        if len(self.values) > 1:
            figures |= {f"{what}: median, {group}": float(numpy.median(own)) for group, own in self.values.items()}
        return figures | {f"{what}: 90th percentile": float(numpy.quantile(together, 0.9))}


def relative(ours: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """Of each row, the length of the difference by the length of the true row."""
    return ((ours - truth).norm(dim=-1) / truth.norm(dim=-1)).tolist()


@dataclass(frozen=True)
class Answer:
    """A greedy answer with what its model thought of each token.

    Attributes:
        ids: The tokens.
        best: For each, the log-probabilities of the likeliest tokens by id. May end before the ids do.
    """

    ids: list[int]
    best: list[Mapping[int, float]]


@dataclass
class Texts:
    """Answers of a thinker, each held against the reference that was forced through it.

    Attributes:
        changes: By how much the lead of each first over the second token is off.
    """

    distances: Distances = field(default_factory=Distances)
    tokens: int = 0
    others: int = 0
    changes: list[float] = field(default_factory=list)

    def add(self, group: str, answer: Answer, truth: torch.Tensor) -> None:
        """One answer, and the reference's own logits [ids, vocabulary] for its tokens."""
        logprobs = truth.log_softmax(-1)
        for index, best in enumerate(answer.best):
            ids = torch.tensor(list(best))
            off = torch.tensor(list(best.values())) - logprobs[index, ids]
            self.distances.add(group, [float(off.square().mean().sqrt())])
            self.changes += (off[0] - off[1:2]).abs().tolist()
        picked = truth.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        self.tokens += len(answer.ids)
        self.others += int((picked < truth.amax(-1)).sum())

    def figures(self) -> Figures:
        return {**self.distances.figures("log-probabilities"), "tokens that differ": self.others / self.tokens}

    def change(self) -> float:
        """What the lead of a first token is off by, but for one in a hundred."""
        return float(numpy.quantile(self.changes, 0.99))


@dataclass
class Codes:
    """Frames of a predictor: each as far as its codes are the reference's, and the first other one."""

    codes: int = 0
    others: int = 0

    def add(self, ours: Sequence[int], truth: Sequence[int]) -> None:
        """One frame, and the reference's: what follows another code is another frame."""
        for own, true in zip(ours[1:], truth[1:], strict=True):
            self.codes += 1
            if own != true:
                self.others += 1
                return

    def figures(self) -> Figures:
        return {"codes that differ": self.others / self.codes}
