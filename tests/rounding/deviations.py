"""Measures how far a stage's results are from the reference's results. A few figures summarise all the distances:
medians, percentiles and shares. A smaller figure is always better.

If a router gives two experts nearly equal scores, it may pick a different expert in bfloat16. In this case, all results
for the token are far from the reference's results. A few such tokens hardly change a median. So the tests check medians
first, and check large distances separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy
import torch

Figures = dict[str, float]


@dataclass
class Distances:
    """Distances between single results and the reference's results, by group."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, group: str, distances: Iterable[float]) -> None:
        self.values.setdefault(group, []).extend(distances)

    def figures(self, what: str) -> Figures:
        """The median and the 90th percentile of all distances and, if there are several groups, the median of each
        group.
        """
        together = [value for group in self.values.values() for value in group]
        figures = {f"{what}: median": float(numpy.median(together))}
        if len(self.values) > 1:
            figures |= {f"{what}: median, {group}": float(numpy.median(own)) for group, own in self.values.items()}
        return figures | {f"{what}: 90th percentile": float(numpy.quantile(together, 0.9))}


def relative(ours: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """For each row, the length of the difference divided by the length of the true row."""
    return ((ours - truth).norm(dim=-1) / truth.norm(dim=-1)).tolist()


@dataclass(frozen=True)
class Answer:
    """A greedy answer, with the log-probabilities that its model gave at each token.

    Attributes:
        ids: The tokens.
        best: For each token, the log-probabilities of the likeliest ids, by id. There may be fewer entries than tokens
            in `ids`.
    """

    ids: list[int]
    best: list[Mapping[int, float]]


@dataclass
class Texts:
    """Answers of a thinker. Each answer is compared with the results of the reference, which was forced to generate the
    same tokens.

    Attributes:
        changes: For each token, the error of the lead. The lead is the log-probability of the likeliest id minus the
            log-probability of the second-likeliest id. Its error is the difference from the lead that the reference
            gives for the same two ids.
    """

    distances: Distances = field(default_factory=Distances)
    tokens: int = 0
    others: int = 0
    changes: list[float] = field(default_factory=list)

    def add(self, group: str, answer: Answer, truth: torch.Tensor) -> None:
        """Add one answer, with the logits [ids, vocabulary] that the reference computes at the answer's tokens."""
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
        """The 99th percentile of `changes`, the errors of the leads."""
        return float(numpy.quantile(self.changes, 0.99))


@dataclass
class Codes:
    """Frames of a predictor. Each frame is compared with the reference's frame, up to and including the first code that
    differs.
    """

    codes: int = 0
    others: int = 0

    def add(self, ours: Sequence[int], truth: Sequence[int]) -> None:
        """Compare one frame with the reference's frame up to the first different code. Later codes depend on that code,
        so they are not compared.
        """
        for own, true in zip(ours[1:], truth[1:], strict=True):
            self.codes += 1
            if own != true:
                self.others += 1
                return

    def figures(self) -> Figures:
        return {"codes that differ": self.others / self.codes}
