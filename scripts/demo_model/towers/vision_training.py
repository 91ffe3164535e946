"""Trains the vision tower to output the names of the things in each cell of a picture. This training needs no
questions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeVisionEncoder

from demo_model.checkpoint.shapes import model_configuration, token_embeddings
from demo_model.checkpoint.tokenizer import vocabulary
from demo_model.towers.vision_batches import PATCH, patches, see
from demo_model.towers.vision_lessons import NAMES, PAIRS, WORDS, VisionLesson, clip_lesson, lessons, picture_lesson
from demo_model.training.training_run import TrainingRun
from demo_model.world.grammar import COLOURS, DIRECTIONS

_SHARPNESS = 8.0
_ENOUGH = 0.4
"""Words are trained and judged only in cells that contain more than this share of a thing."""
_NAMES = slice(0, len(NAMES))
_COLOURS = slice(len(NAMES), len(NAMES) + len(COLOURS))
_DIRECTIONS = slice(len(NAMES) + len(COLOURS), len(NAMES) + len(COLOURS) + len(DIRECTIONS))
_PAIRS = slice(len(WORDS) - len(PAIRS), len(WORDS))
_CLIP_SHARE = 0.45
_LENGTH = 3.0
"""The squared length of every row without its mark (see `codebook`). The unit is the squared length of the row of one
word. Three words describe a thing (`vision_lessons.words_for`).
"""
ROW_LENGTH = _LENGTH + 1
"""The squared length of every row with its mark, in the same unit."""
_FOCUS = 3.5
"""The strength with which an untrained head prefers the patch at the head's offset (see `_OFFSETS`)."""
_OFFSETS = (
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2)),
    ((-2, -2), (-2, 2), (2, -2), (2, 2)),
    ((0, 0), (0, 0), None, None),
)
"""The offset of each head in each block. Before the training, a head attends from each patch to another patch. The
offset leads from the first patch to the second, in rows and columns.
"""


@functools.cache
def codebook() -> Tensor:
    """The tower's vocabulary, float32 [words + 2, hidden]: one row for each of `WORDS`, one row for "nothing", and one
    row for a mark.

    The rows of kinds, colours and directions are the thinker's own token embeddings. The row of a cell is a sum. For a
    red car that moves left, the sum contains the rows of " car", " red" and " left". For half of this car, the sum
    contains one half of each of these rows. So a thinker that can read words can read pictures. `PAIRS` are not tokens:
    the row of each pair is orthogonal to all other rows, and has the same length. The mark is in every visual row and
    in no text row. A head can use the mark to attend to all visual rows evenly. This is how the thinker counts.
    """
    rows, ids = torch.from_numpy(token_embeddings()), vocabulary().id
    words = rows[[ids(f" {word}") for word in WORDS[: _PAIRS.start]]]
    rest = rows[[ids("<|image_pad|>"), ids("<|vision_start|>")]]
    drawn = torch.randn(len(PAIRS), rows.shape[1], generator=torch.Generator().manual_seed(8))
    basis = torch.linalg.qr(torch.cat([words, rest, drawn]).T).Q.T[-len(PAIRS) :]
    return torch.cat([words, basis * rows.shape[1] ** 0.5, rest])


@functools.cache
def readout() -> Tensor:
    """The matrix that turns rows back into amounts: float32 [hidden, words + 2]."""
    return torch.linalg.pinv(codebook())


def spelled_out(amounts: Tensor) -> Tensor:
    """The rows for `amounts` [..., words]. Each row is filled up with "nothing", so that all rows have the same length.

    The first step of the thinker normalises its rows. All rows have the same length, so normalising does not change the
    proportions between the rows. After the normalisation, the row for half a car still contains half of the amount in
    the row for a whole car. So a sum of rows still counts the cars.
    """
    nothing = (_LENGTH - amounts.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat([amounts, nothing, torch.ones_like(nothing)], -1) @ codebook()


def new_tower() -> Any:
    torch.manual_seed(3)
    tower = Qwen3OmniMoeVisionEncoder(model_configuration().thinker_config.vision_config)
    for module in tower.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.trunc_normal_(module.weight, std=0.7 / module.weight[0].numel() ** 0.5)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    nn.init.normal_(tower.pos_embed.weight, std=0.2)
    for block, offsets in zip(tower.blocks, _OFFSETS, strict=True):
        _look_nearby(block.attn, offsets, tower.rotary_pos_emb.inv_freq)
    _see_edges(tower.patch_embed.proj)
    return tower


@torch.no_grad()
def _see_edges(projection: nn.Conv3d) -> None:
    """Initialise the patch embedding with cosine filters, scaled so that all outputs are equally strong.

    With random filters, all 128 outputs would depend mainly on the colour of a patch, because nearly all variance
    between patches is colour. Then the tower would learn the colours in a hundred steps, but hardly any shapes.
    """
    frames = picture_lesson(Random(0), 8), clip_lesson(Random(0), 8)
    sample = torch.cat([patches(lesson.frames).flatten(0, 1) for lesson in frames])
    basis = _cosines().flatten(1)
    projection.weight.copy_((basis / (sample @ basis.T).std(0).clamp(min=0.02)[:, None]).view_as(projection.weight))
    assert projection.bias is not None
    projection.bias.copy_(-(sample.mean(0) @ projection.weight.flatten(1).T))


def _cosines() -> Tensor:
    """The 128 filters [128, 3, 2, 16, 16]: for brightness (in finer detail than colour), for colour, and for changes
    between the two frames.
    """
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
    """Initialise each head so that it attends to the patch at the head's offset. An offset is a number of rows down and
    a number of columns to the right.

    Query and key are the same for all patches, so only the rotary positions decide where a head attends. The query is
    rotated by the offset, and gives the patch at that offset the highest score. So the tower begins like a convolution.
    Without this initialisation, a tower recognises every colour after a hundred steps, but no shape after a thousand.
    An offset of None leaves the head at its random weights.
    """
    # a rotary pair has one component in each half
    query, key, _ = attention.qkv.bias.view(3, attention.num_heads, 2, -1)
    for head, offset in enumerate(offsets):
        if offset is not None:
            angles = torch.cat([offset[0] * frequencies, offset[1] * frequencies])
            query[head] = _FOCUS * torch.stack([angles.cos(), angles.sin()])
            key[head] = _FOCUS * torch.stack([torch.ones_like(angles), torch.zeros_like(angles)])


def loss_of(rows: Tensor, lesson: VisionLesson) -> dict[str, Tensor]:
    """The parts of the loss for `rows` [batch, cells, hidden].

    "amounts" and "rest" are distances to the correct output of each cell, divided by the number of things. "count" is
    the error of the counts in whole frames. The other parts are cross entropies of the words in cells that show things.
    """
    rows, truth = rows.float(), spelled_out(lesson.amounts)
    things = _things(lesson)
    off = rows - truth
    said = off @ readout()
    losses = {
        "amounts": said.square().sum(-1)[lesson.judged].sum() / things,
        "rest": off.square().mean(-1)[lesson.judged].sum() / things,
    }
    known = lesson.judged.all(1) & (lesson.amounts[..., WORDS.index("drawn")].sum(1) == 0)
    if known.any():
        counted = (rows[known] @ readout()).sum(1)[:, : len(WORDS)]
        losses["count"] = F.smooth_l1_loss(counted, lesson.amounts[known].sum(1))
    weight = lesson.amounts[..., : len(NAMES)].sum(-1)
    here = weight > _ENOUGH
    for name, words in (("name", _NAMES), ("colour", _COLOURS), ("direction", _DIRECTIONS), ("pair", _PAIRS)):
        true = lesson.amounts[here][:, words]
        told = true.sum(-1) > _ENOUGH
        if told.any():
            scores = _SHARPNESS * (rows[here][told] @ readout()[:, words])
            one = F.cross_entropy(scores, true[told].argmax(-1), reduction="none")
            losses[name] = (one * weight[here][told]).sum() / weight[here][told].sum()
    return losses


def _things(lesson: VisionLesson) -> Tensor:
    """The number of things in a batch, at least one. A drawing counts as three."""
    drawn = lesson.amounts[..., WORDS.index("drawn")].sum(1)
    things = lesson.amounts[..., : len(NAMES)].sum((1, 2))
    return torch.where(drawn > 0, 3.0, things).sum().clamp(min=1)


def _weighed(losses: dict[str, Tensor], lesson: VisionLesson) -> Tensor:
    """The weighted sum of the losses, multiplied by T / (T + 10). T is the number of things in the batch.

    Most losses are means over the things in a batch. So with the factor, each thing has the weight 1 / (T + 10).
    Without the factor, the weight would be 1 / T, and a thing in a batch with few things would count too much. With the
    factor, the only thing in a batch of clips has at most about seven times the weight of one thing in a batch of
    pictures.
    """
    things = float(_things(lesson))
    share = things / (things + 10)
    weights = {"name": 1.0, "amounts": 1.0, "rest": 0.1, "count": 2.5, "colour": 0.5, "direction": 0.5, "pair": 0.5}
    return sum((share * weights[name] * loss for name, loss in losses.items()), torch.zeros(()))


@torch.no_grad()
def accuracy(rows: Tensor, lesson: VisionLesson) -> dict[str, Tensor]:
    """Measures of the accuracy of `rows`.

    "counts_right" is the share of frames in which the counts of all kinds are correct. "pairs_counted" is the share of
    frames in which the counts of all pairs are correct. Each frame has a largest error among its counts of kinds, and
    "count_off" is the mean of these largest errors. These three values leave out frames with a drawing or with cells
    that are not judged. The other values are the shares of correct names, colours and directions in the cells that show
    a thing.
    """
    said = rows.float() @ readout()
    known = lesson.judged.all(1) & (lesson.amounts[..., WORDS.index("drawn")].sum(1) == 0)
    right = {}
    if known.any():
        off = (said[known][..., : len(WORDS)].sum(1) - lesson.amounts[known].sum(1)).abs()
        right["counts_right"] = (off[:, _NAMES] < 0.5).all(-1).float().mean()
        right["pairs_counted"] = (off[:, _PAIRS] < 0.5).all(-1).float().mean()
        right["count_off"] = off[:, _NAMES].max(-1).values.mean()
    here = lesson.amounts[..., _NAMES].sum(-1) > _ENOUGH
    for name, words in (("names_right", _NAMES), ("colours_right", _COLOURS), ("directions_right", _DIRECTIONS)):
        true = lesson.amounts[here][:, words]
        told = true.sum(-1) > _ENOUGH
        if told.any():
            right[name] = (said[here][told][:, words].argmax(-1) == true[told].argmax(-1)).float().mean()
    return right


def train(directory: Path, steps: int, batch: int = 8, rate: float = 1.5e-3) -> Any:
    """Train a new tower, and return it."""
    tower = new_tower()
    run = TrainingRun(directory, tower, steps, rate, warmup=100, save_every=100, muon=True)
    endless = lessons(seed=1_000_000 + run.done, batch=batch, clip_share=_CLIP_SHARE)
    for _ in run:
        lesson = next(endless)
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
