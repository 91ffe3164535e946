"""Teaches the vision tower to name, cell by cell, what has its centre there: before any question is asked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeVisionEncoder

from .language import COLOURS, DIRECTIONS
from .lessons import IGNORED, NAMES, NOTHING, Lesson, clip_lesson, lessons, picture_lesson
from .seeing import PATCH, patches, see
from .shapes import SHAPES, model_configuration, token_embeddings
from .tokenizer import vocabulary
from .training_run import TrainingRun

_SHARPNESS = 8.0
_CLIP_SHARE = 0.3
_FOCUS = 3.5
_OFFSETS = (
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2)),
    ((-2, -2), (-2, 2), (2, -2), (2, 2)),
    ((0, 0), (0, 0), None, None),
)
"""Rows and columns from a patch to where each head of each block looks at first."""


@dataclass(frozen=True)
class Codebook:
    """What the tower says, in rows of the thinker's own token embeddings: a red car that moves left is the sum of the
    rows of " car", " red" and " left". So a thinker that can read words can read pictures.
    """

    names: Tensor
    """[names and nothing, hidden]"""
    colours: Tensor
    """[6, hidden]"""
    directions: Tensor
    """[4 and still, hidden]; still is no row."""
    drawn: Tensor
    """[not drawn, drawn], hidden]; not drawn is no row."""


@functools.cache
def codebook() -> Codebook:
    rows, ids = torch.from_numpy(token_embeddings()), vocabulary().id

    def words(names: tuple[str, ...]) -> Tensor:
        return torch.stack([rows[ids(f" {name}")] for name in names])

    none = torch.zeros(1, SHAPES.thinker.hidden)
    return Codebook(
        names=torch.cat([words(NAMES), rows[ids("<|image_pad|>")][None]]),
        colours=words(COLOURS),
        directions=torch.cat([words(DIRECTIONS), none]),
        drawn=torch.cat([none, words(("drawn",))]),
    )


def spelled_out(lesson: Lesson) -> Tensor:
    """The rows that the tower should give: float32 [batch, cells, hidden]."""
    book = codebook()
    target = book.names[lesson.names.clamp(min=0)]
    for table, words in (
        (lesson.colours, book.colours),
        (lesson.directions, book.directions),
        (lesson.drawn, book.drawn),
    ):
        target = target + words[table.clamp(min=0)] * (table >= 0)[..., None]
    return target


def new_tower() -> Any:
    torch.manual_seed(3)
    tower = Qwen3OmniMoeVisionEncoder(model_configuration().thinker_config.vision_config)
    for module in tower.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.trunc_normal_(module.weight, std=0.7 / module.weight[0].numel() ** 0.5)
            nn.init.zeros_(module.bias)
    nn.init.normal_(tower.pos_embed.weight, std=0.2)
    for block, offsets in zip(tower.blocks, _OFFSETS, strict=True):
        _look_nearby(block.attn, offsets, tower.rotary_pos_emb.inv_freq)
    _see_edges(tower.patch_embed.proj)
    return tower


@torch.no_grad()
def _see_edges(projection: nn.Conv3d) -> None:
    """Let the tower begin with the cosines that make up a patch, all made equally strong.

    At random, all 128 views of a patch would be of its colour, which is nearly all of its variance: the tower then
    learns colours in a hundred steps, and shapes hardly at all.
    """
    frames = picture_lesson(Random(0), 8), clip_lesson(Random(0), 8)
    sample = torch.cat([patches(lesson.frames).flatten(0, 1) for lesson in frames])
    basis = _cosines().flatten(1)
    projection.weight.copy_((basis / (sample @ basis.T).std(0).clamp(min=0.02)[:, None]).view_as(projection.weight))
    projection.bias.copy_(-(sample.mean(0) @ projection.weight.flatten(1).T))


def _cosines() -> Tensor:
    """The 128 filters [128, 3, 2, 16, 16]: brightness finer than colour, and what changes between the two frames."""
    steps = (torch.arange(PATCH) + 0.5) * torch.pi / PATCH
    waves = torch.stack([torch.cos(steps * frequency) for frequency in range(8)])
    channels = {
        "bright": torch.tensor([0.3, 0.5, 0.2]),
        "warm": torch.tensor([0.5, 0.0, -0.5]),
        "green": torch.tensor([-0.5, 1.0, -0.5]),
    }
    both, change = torch.tensor([0.5, 0.5]), torch.tensor([-0.5, 0.5])
    plan = [("bright", both, 50), ("warm", both, 16), ("green", both, 16), ("bright", change, 26)]
    plan += [("warm", change, 10), ("green", change, 10)]
    order = sorted(((u, v) for u in range(8) for v in range(8)), key=lambda uv: (uv[0] + uv[1], uv))
    return torch.stack(
        [
            channels[name][:, None, None, None] * time[:, None, None] * torch.outer(waves[u], waves[v])
            for name, time, number in plan
            for u, v in order[:number]
        ]
    )


@torch.no_grad()
def _look_nearby(attention: Any, offsets: Sequence[tuple[float, float] | None], frequencies: Tensor) -> None:
    """Let each head begin with looking at the patch that lies so many rows below and columns to the right.

    With the same query and key everywhere, rotary positions decide alone: turned by an offset, they score the patch
    at that offset best. The tower then begins as a convolution does. Left to find that out, it knows every colour
    after a hundred steps, and after a thousand no shape. None leaves a head as it is drawn.
    """
    query, key, _ = attention.qkv.bias.view(3, attention.num_heads, 2, -1)  # pairs: first halves, second halves
    for head, offset in enumerate(offsets):
        if offset is not None:
            angles = torch.cat([offset[0] * frequencies, offset[1] * frequencies])
            query[head] = _FOCUS * torch.stack([angles.cos(), angles.sin()])
            key[head] = _FOCUS * torch.stack([torch.ones_like(angles), torch.zeros_like(angles)])


def loss_of(rows: Tensor, lesson: Lesson) -> dict[str, Tensor]:
    """How far `rows` [batch, cells, hidden] are from naming what is in each cell."""
    book, rows = codebook(), rows.float()
    there = (lesson.names >= 0) & (lesson.names != NOTHING)
    weights = torch.ones(len(NAMES) + 1)
    weights[NOTHING] = 0.25
    losses = {"name": F.cross_entropy(_scores(rows, book.names).flatten(0, 1), lesson.names.flatten(), weights)}
    objects = rows[there]
    for name, table, words in (
        ("colour", lesson.colours, book.colours),
        ("direction", lesson.directions, book.directions),
        ("drawn", lesson.drawn, book.drawn),
    ):
        truth = table[there]
        if (truth >= 0).any():
            losses[name] = F.cross_entropy(_scores(objects, words), truth, ignore_index=IGNORED)
    distance = (rows - spelled_out(lesson)).square().mean(-1)
    empty = lesson.names == NOTHING
    losses["distance"] = (
        distance[there].mean() + 0.5 * distance[empty].mean() if there.any() else distance[empty].mean()
    )
    return losses


def _weighed(losses: dict[str, Tensor], lesson: Lesson) -> Tensor:
    """One loss. What is said of few things weighs little: a clip's one thing must not drown a picture's seven names."""
    things = ((lesson.names >= 0) & (lesson.names != NOTHING)).sum()
    share = float(things / (things + 20))
    weights = {"name": 1.0, "distance": 0.3 * share}
    return sum((weights.get(name, 0.5 * share) * loss for name, loss in losses.items()), torch.zeros(()))


def _scores(rows: Tensor, words: Tensor) -> Tensor:
    """How much of each word is in each row. No word at all scores what half a word does."""
    scores = rows @ words.T / words.shape[1]
    return _SHARPNESS * torch.where(words.any(-1), scores, 0.5)


@torch.no_grad()
def accuracy(rows: Tensor, lesson: Lesson) -> dict[str, Tensor]:
    """Shares of frames in which every name (and nothing else) is found, and of right colours and directions there."""
    book, rows = codebook(), rows.float()
    judged = lesson.names >= 0
    found = _scores(rows, book.names).argmax(-1)
    right = {"frames_right": ((found == lesson.names) | ~judged).all(1).float().mean()}
    for name, table, words in (
        ("colours_right", lesson.colours, book.colours),
        ("directions_right", lesson.directions, book.directions),
    ):
        known = table >= 0
        if known.any():
            right[name] = (_scores(rows[known], words).argmax(-1) == table[known]).float().mean()
    return right


def train(directory: Path, steps: int, batch: int = 16, rate: float = 1.5e-3) -> Any:
    """The trained tower."""
    tower = new_tower()
    run = TrainingRun(directory, tower, steps, rate, warmup=100, save_every=100, muon=True)
    classes = lessons(seed=1_000_000 + run.done, batch=batch, clip_share=_CLIP_SHARE)
    for _ in run:
        lesson = next(classes)
        with torch.autocast("cpu", torch.bfloat16):
            rows, deep = see(tower, lesson.frames)
        parts = loss_of(rows, lesson)
        loss = _weighed(parts, lesson)
        for number, map_ in enumerate(deep):
            loss = loss + 0.1 * (number + 1) * _weighed(loss_of(map_, lesson), lesson)
        kind = "picture" if lesson.frames.shape[0] == batch else "clip"
        shown = {f"{kind}_{name}": value for name, value in {**parts, **accuracy(rows, lesson)}.items()}
        run.update({"loss": loss, **{name: value.detach() for name, value in shown.items()}})
    return tower
