"""Teaches the vision tower to name, cell by cell, what has its centre there: before any question is asked."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeVisionEncoder

from .language import COLOURS, DIRECTIONS
from .lessons import IGNORED, NAMES, NOTHING, STILL, Lesson, lessons
from .seeing import see
from .shapes import SHAPES, model_configuration, token_embeddings
from .tokenizer import vocabulary
from .training_run import TrainingRun

_SHARPNESS = 8.0
_CLIP_SHARE = 0.3


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
    for table, words in ((lesson.colours, book.colours), (lesson.directions, book.directions), (lesson.drawn, book.drawn)):
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
    for block in tower.blocks:
        _look_nearby(block.attn)
    return tower


@torch.no_grad()
def _look_nearby(attention: Any) -> None:
    """Let most heads begin with looking at what is close: with equal queries and keys everywhere, rotary positions
    score a patch the less the farther it is. Left to find that out, the tower names nothing for many hundred steps.
    """
    query, key, _ = attention.qkv.bias.view(3, attention.num_heads, -1)
    nearness = torch.linspace(2.2, 0.0, attention.num_heads)[:, None]
    query.copy_(nearness.expand_as(query))
    key.copy_(nearness.expand_as(key))


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
    losses["distance"] = distance[there].mean() + 0.5 * distance[empty].mean() if there.any() else distance[empty].mean()
    return losses


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
    run = TrainingRun(directory, tower, steps, rate, warmup=100, save_every=100)
    classes = lessons(seed=1_000_000 + run.done, batch=batch, clip_share=_CLIP_SHARE)
    for _ in run:
        lesson = next(classes)
        with torch.autocast("cpu", torch.bfloat16):
            rows, deep = see(tower, lesson.frames)
        parts = loss_of(rows, lesson)
        loss = sum(parts.values())
        for number, map_ in enumerate(deep):
            loss = loss + 0.15 * (number + 1) * sum(loss_of(map_, lesson).values())
        kind = "picture" if lesson.frames.shape[0] == batch else "clip"
        shown = {f"{kind}_{name}": value for name, value in {**parts, **accuracy(rows, lesson)}.items()}
        run.update({"loss": loss, **{name: value.detach() for name, value in shown.items()}})
    return tower
