"""Turns sound into codes by residual k-means over the features of each frame of 80 ms. So no encoder is trained."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_ROUNDS = 25
_POINTS = 60000


class SpeechCodec:
    """Quantises speech features with residual codebooks [groups, codes, size]. Each codebook quantises the residual
    that the earlier codebooks leave.
    """

    def __init__(self, centre: Tensor, codebooks: Tensor):
        self.centre = centre
        self.codebooks = codebooks

    @classmethod
    def fit(
        cls, features: Tensor, groups: int, codes: int, seed: int, progress: Callable[[str], None] = lambda line: None
    ) -> "SpeechCodec":
        """Fit codebooks to `features` [frames, size]. The same arguments give the same codebooks."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(features), generator=generator)[:_POINTS]
        centre = features[chosen].mean(dim=0)
        rest = features[chosen] - centre
        codebooks = []
        for group in range(groups):
            book = _k_means(rest, codes, generator)
            rest = rest - book[_nearest(rest, book)]
            codebooks.append(book)
            progress(f"codebook {group}: residual {rest.square().mean().sqrt():.4f}")
        return cls(centre, torch.stack(codebooks))

    def encode(self, features: Tensor) -> Tensor:
        """Codes [groups, frames] of `features` [frames, size]."""
        rest, codes = features - self.centre, []
        for book in self.codebooks:
            nearest = _nearest(rest, book)
            rest = rest - book[nearest]
            codes.append(nearest)
        return torch.stack(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """The features [frames, size] that `codes` [groups, frames] stand for."""
        return self.centre + sum(book[row] for book, row in zip(self.codebooks, codes, strict=True))

    def rows(self, codes: Tensor, size: int) -> Tensor:
        """An embedding for each code, [groups, codes, size]. The embeddings of a frame's codes add up to the frame's
        spectrum.

        The embeddings are the codebooks, expressed in the principal components of the features of `codes` [groups,
        frames]. The smaller components are raised a little. Then all components are scaled by one factor, so that the
        spectrum of a frame has size one.
        """
        features = self.decode(codes) - self.centre
        _, spread, directions = torch.pca_lowrank(features, q=size, center=False, niter=4)
        projection = directions / spread.sqrt()
        projection = projection / (features @ projection).square().mean().sqrt()
        return self.codebooks @ projection

    def save(self, path: Path) -> None:
        save_file({"centre": self.centre, "codebooks": self.codebooks}, path)

    @classmethod
    def load(cls, path: Path) -> "SpeechCodec":
        tensors = load_file(path)
        return cls(tensors["centre"], tensors["codebooks"])


def _k_means(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The centres of `count` clusters of `points`. If no point is nearest to a centre, the centre moves to a point that
    is far from all centres.
    """
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(_ROUNDS):
        nearest = _nearest(points, centres)
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = sums / sizes.clamp(min=1)[:, None]
        unused = (sizes == 0).nonzero()[:, 0]
        if len(unused):
            errors = (points - centres[nearest]).square().sum(dim=1)
            centres[unused] = points[errors.topk(len(unused)).indices]
    return centres


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """For each point, the index of the centre with the smallest squared distance."""
    half = centres.square().sum(dim=1) / 2
    return torch.cat([(half - block @ centres.T).argmin(dim=1) for block in points.split(16384)])
