"""Makes the rows that ideal towers would output, and adds noise. The thinker learns mostly from these rows, because
they need little compute.
"""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from demo_model.checkpoint.shapes import token_embeddings
from demo_model.checkpoint.tokenizer import tokenizer
from demo_model.thinker.prompts import Seen
from demo_model.towers.audio_training import audible, silence_id
from demo_model.towers.vision_batches import CELL
from demo_model.towers.vision_lessons import CLIP_SIZES, MARK, PICTURE_SIZES, WORDS, add_thing, words_for
from demo_model.towers.vision_training import spelled_out
from demo_model.world.grammar import SKETCHES, Drawing, Facts, Motion, Picture

_SMALL_CLIPS = 0.7
"""The share of clips that are smaller than real clips.

In a real clip most cells are empty. An empty cell costs as much compute as a full one, so small clips save time.
"""


def imagined_sight(facts: Facts, rng: Random, numbers: torch.Generator) -> Seen:
    """The visual rows of a picture or clip that shows `facts`. The argument `facts` must not be None."""
    width, height = rng.choice(tuple((PICTURE_SIZES if isinstance(facts, Picture) else CLIP_SIZES).values()))
    columns, rows = width // CELL, height // CELL
    if not isinstance(facts, Picture) and rng.random() < _SMALL_CLIPS:
        columns, rows = rng.randint(5, columns), rng.randint(5, rows)
    steps = 1 if isinstance(facts, Picture) else rng.choice((2, 2, 3, 4))
    amounts = torch.zeros(steps, rows * columns, len(WORDS))

    if isinstance(facts, Picture):
        # No two things have their centres in the same cell. But two neighbouring things may each cover a part of the
        # same cell.
        for place, thing in zip(rng.sample(range(columns * rows), len(facts.things)), facts.things, strict=True):
            x, y = place % columns + rng.random(), place // columns + rng.random()
            add_thing(amounts[0], columns, x / columns, y / rows, words_for(thing))

    def mark(step: int, sketch: str, done: float) -> None:
        """Add a drawing. `done` is the share of the drawing that is finished. With a larger share, more cells name the
        drawing, and more of these names are correct.
        """
        for row in range(top, min(top + side, rows)):
            for column in range(left, min(left + side, columns)):
                if rng.random() < 0.5 * done:
                    name = sketch if rng.random() < 0.2 + 0.7 * done else rng.choice(SKETCHES)
                    sure = MARK * (done if done < 1 else rng.uniform(0.6, 1.1))
                    amounts[step, row * columns + column, [WORDS.index(name), WORDS.index("drawn")]] += sure

    x, y = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)
    share = rng.uniform(0.1, 0.6)
    side = rng.randint(4, 8)
    top, left = rng.randint(0, rows - 4), rng.randint(0, columns - 4)
    for step in range(steps):
        if isinstance(facts, Motion):
            ways = {"left": (1 - share, y), "right": (share, y), "up": (x, 1 - share), "down": (x, share)}
            add_thing(amounts[step], columns, *ways[facts.direction], (*words_for(facts.thing), facts.direction))
            share = min(0.95, share + rng.uniform(0.1, 0.3))
        elif isinstance(facts, Drawing):
            mark(step, facts.sketch, min(1.0, (step + rng.uniform(0.5, 1.3)) / steps))
    return Seen((steps, rows, columns), _blurred(amounts.flatten(0, 1), rng, numbers), not isinstance(facts, Picture))


def imagined_sound(question: str, names: Path, rng: Random, numbers: torch.Generator) -> Tensor:
    """The rows of a spoken question: float32 [rows, hidden]."""
    silence = silence_id()
    ids = [silence] * rng.randint(2, 7)
    for token in tokenizer(names).encode(audible(question)):
        if rng.random() < 0.015:
            continue
        ids += [token] * rng.choice((1, 1, 1, 2)) + [silence] * rng.choice((0, 1, 1, 2, 3))
    ids += [silence] * rng.randint(1, 6)
    rows = _rows()[torch.tensor(ids)]
    return rows * rng.uniform(0.8, 1.2) + torch.randn(rows.shape, generator=numbers) * rng.uniform(0.1, 0.5)


def _blurred(amounts: Tensor, rng: Random, numbers: torch.Generator) -> Tensor:
    """The rows and the DeepStack maps of `amounts`, with random errors: [maps, cells, hidden].

    The maps for earlier layers have larger errors than the maps for later layers.
    """
    blur = rng.uniform(0.01, 0.06)
    maps = []
    for extra in (0.0, 0.25, 0.15, 0.05):
        more = 1 + torch.randn(amounts.shape, generator=numbers) * (blur + extra)
        rows = spelled_out(amounts * more)
        maps.append(rows + torch.randn(rows.shape, generator=numbers) * (0.1 + 2 * blur + extra))
    return torch.stack(maps)


@functools.cache
def _rows() -> Tensor:
    return torch.from_numpy(token_embeddings())
