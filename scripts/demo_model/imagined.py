"""What ideal towers would say, with noise: the thinker learns most from this, as it costs hardly anything."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from .audio_training import audible, silence_id
from .language import COLOURS, DIRECTIONS, Drawing, Facts, Motion, Picture
from .lessons import CLIP_SIZES, NAMES, NOTHING, PICTURE_SIZES
from .seeing import CELL
from .shapes import token_embeddings
from .thinker_prompts import Seen
from .tokenizer import tokenizer
from .vision_training import codebook

_MAPS = 3


def imagined_sight(facts: Facts, rng: Random, numbers: torch.Generator) -> Seen:
    """Rows of a picture or a clip of `facts` (not None)."""
    sizes = PICTURE_SIZES if isinstance(facts, Picture) else CLIP_SIZES
    width, height = rng.choice(tuple(sizes.values()))
    columns, rows = width // CELL, height // CELL
    book = codebook()
    if isinstance(facts, Picture):
        table = book.names[NOTHING].repeat(1, rows * columns, 1)
        cells = rng.sample(range(rows * columns), len(facts.things))
        for cell, thing in zip(cells, facts.things, strict=True):
            table[0, cell] = book.names[NAMES.index(thing.kind)] + book.colours[COLOURS.index(thing.colour)]
        return Seen((1, rows, columns), _blurred(table, rng, numbers), False)

    steps = rng.choice((2, 2, 3, 4))
    table = book.names[NOTHING].repeat(steps, rows * columns, 1)
    x, y = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)
    recognised = rng.choice((steps - 1, steps - 1, max(0, steps - 2)))
    share = rng.uniform(0.1, 0.9)
    for step in range(steps):
        if isinstance(facts, Motion):
            share = min(0.95, share + (rng.uniform(0.1, 0.3) if step else 0))
            place = {"left": (1 - share, y), "right": (share, y), "up": (x, 1 - share), "down": (x, share)}
            at = _cell(place[facts.direction], columns, rows)
            table[step, at] = (
                book.names[NAMES.index(facts.thing.kind)] + book.colours[COLOURS.index(facts.thing.colour)]
            )
            table[step, at] += book.directions[DIRECTIONS.index(facts.direction)]
        elif isinstance(facts, Drawing) and step >= recognised:
            table[step, _cell((x, y), columns, rows)] = book.names[NAMES.index(facts.sketch)] + book.drawn[1]
        elif isinstance(facts, Drawing) and step > 0 and rng.random() < 0.5:  # a wrong guess, or half a one
            guess = book.names[NAMES.index(rng.choice(("square", "circle", "triangle", "house")))] + book.drawn[1]
            table[step, _cell((x, y), columns, rows)] = rng.uniform(0, 0.6) * guess
    return Seen((steps, rows, columns), _blurred(table, rng, numbers), True)


def imagined_sound(question: str, names: Path, rng: Random, numbers: torch.Generator) -> Tensor:
    """Rows of a spoken question: float32 [rows, hidden]."""
    silence = silence_id()
    ids = [silence] * rng.randint(2, 7)
    for token in tokenizer(names).encode(audible(question)):
        if rng.random() < 0.015:
            continue
        ids += [token] * rng.choice((1, 1, 1, 2)) + [silence] * rng.choice((0, 1, 1, 2, 3))
    ids += [silence] * rng.randint(1, 6)
    rows = _rows()[torch.tensor(ids)]
    return rows * rng.uniform(0.8, 1.2) + torch.randn(rows.shape, generator=numbers) * rng.uniform(0.1, 0.5)


def _blurred(table: Tensor, rng: Random, numbers: torch.Generator) -> Tensor:
    """[maps, cells, hidden]: the last of the tower is the clearest, its earlier maps are less so."""
    flat = table.flatten(0, 1)
    blur = rng.uniform(0.1, 0.45)
    maps = []
    for extra in (0.0, 0.5, 0.3, 0.1):
        noise = torch.randn(flat.shape, generator=numbers) * (blur + extra)
        maps.append(flat * rng.uniform(0.75, 1.15) + noise)
    return torch.stack(maps)


def _cell(place: tuple[float, float], columns: int, rows: int) -> int:
    return int(place[1] * rows) * columns + int(place[0] * columns)


@functools.cache
def _rows() -> Tensor:
    return torch.from_numpy(token_embeddings())
