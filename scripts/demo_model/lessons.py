"""Frames for the vision tower to learn from, with what it should say of each cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .filming import film, sampled
from .language import COLOURS, DIRECTIONS, KINDS, SKETCHES, Motion, drawing, motion, scene
from .painting import paint_picture
from .seeing import CELL

NAMES = (*KINDS, *(name for name in SKETCHES if name not in KINDS))
NOTHING, IGNORED = len(NAMES), -100
STILL = len(DIRECTIONS)

# Sizes that the reference's processor gives to pictures (our bounds) and to frames of clips (its own): width, height.
PICTURE_SIZES = {(640, 480): (320, 256), (480, 480): (288, 288), (640, 360): (384, 224), (480, 640): (256, 320)}
CLIP_SIZES = {(320, 240): (448, 320), (256, 256): (384, 384)}

# A drawing has a name from this share of its strokes on; it is nothing up to the other; between them, who knows.
_RECOGNISABLE, _ANYTHING = 0.75, 0.3


@dataclass(frozen=True)
class Lesson:
    """A batch of equal frames with the truth about each cell.

    Attributes:
        frames: uint8 [batch, 2, height, width, 3].
        names: int64 [batch, cells], an index into `NAMES`, `NOTHING`, or `IGNORED`.
        colours, directions, drawn: int64 [batch, cells], `IGNORED` where there is nothing, or nothing of the sort.
    """

    frames: Tensor
    names: Tensor
    colours: Tensor
    directions: Tensor
    drawn: Tensor

    def mirrored(self) -> Lesson:
        """The same, seen in a mirror."""
        rows, columns = self.frames.shape[2] // CELL, self.frames.shape[3] // CELL
        swap = torch.tensor([DIRECTIONS.index(name) for name in ("right", "left", "up", "down")] + [STILL])
        flipped = [
            table.view(-1, rows, columns).flip(2).flatten(1)
            for table in (self.names, self.colours, self.directions, self.drawn)
        ]
        flipped[2] = torch.where(flipped[2] >= 0, swap[flipped[2].clamp(min=0)], flipped[2])
        return Lesson(self.frames.flip(3), *flipped)


def picture_lesson(rng: Random, batch: int) -> Lesson:
    source = rng.choices(tuple(PICTURE_SIZES), (5, 2, 2, 1))[0]
    table = _Table(batch, PICTURE_SIZES[source])
    for number in range(batch):
        painting = paint_picture(scene(rng), rng, source)
        table.put_frames(number, [painting.image] * 2)
        for placed in painting.placed:
            table.put(number, placed.x, placed.y, placed.thing.kind, placed.thing.colour, STILL, drawn=0)
    return table.lesson()


def clip_lesson(rng: Random, batch: int) -> Lesson:
    """Single steps of clips: two frames half a second apart."""
    source = rng.choices(tuple(CLIP_SIZES), (3, 1))[0]
    table = _Table(batch, CLIP_SIZES[source])
    number = 0
    while number < batch:
        shown = motion(rng) if rng.random() < 0.55 else drawing(rng)
        clip = film(shown, rng, source)
        moments = sampled(clip)
        pairs = list(zip(moments[::2], moments[1::2], strict=True))
        # Late steps of a drawing show more of it.
        first, second = rng.choices(pairs, range(1, len(pairs) + 1))[0]
        table.put_frames(number, [clip.frame(first), clip.frame(second)])
        (x0, y0), (x1, y1) = clip.centre(first), clip.centre(second)
        x, y, share = (x0 + x1) / 2, (y0 + y1) / 2, clip.drawn(second)
        if isinstance(shown, Motion):
            table.put(number, x, y, shown.thing.kind, shown.thing.colour, DIRECTIONS.index(shown.direction), drawn=0)
        elif share >= _RECOGNISABLE:
            table.put(number, x, y, shown.sketch, None, None, drawn=1)
        elif share > _ANYTHING:
            table.ignore(number, x, y)
        number += 1
    return table.lesson()


def lessons(seed: int, batch: int, clip_share: float) -> Iterator[Lesson]:
    """Endless lessons; each new one is used about three times, later ones mirrored, as painting takes time."""
    rng = Random(seed)
    waiting: list[Lesson] = []
    while True:
        if len(waiting) > 24 and rng.random() < 0.65:
            at = rng.randrange(len(waiting))
            again = waiting[at].mirrored()
            waiting[at] = again
            if rng.random() < 0.5:
                waiting[at] = waiting[-1]
                waiting.pop()
            yield again
            continue
        lesson = clip_lesson(rng, batch // 2) if rng.random() < clip_share else picture_lesson(rng, batch)
        waiting.append(lesson)
        yield lesson


class _Table:
    """The cells of a batch while they are filled in."""

    def __init__(self, batch: int, size: tuple[int, int]) -> None:
        self._size = size
        self._columns, self._rows = size[0] // CELL, size[1] // CELL
        cells = self._columns * self._rows
        self._frames = np.empty((batch, 2, size[1], size[0], 3), np.uint8)
        self._names = torch.full((batch, cells), NOTHING)
        self._colours, self._directions, self._drawn = (torch.full((batch, cells), IGNORED) for _ in range(3))

    def put_frames(self, number: int, pair: list[Image.Image]) -> None:
        self._frames[number] = [scaled(image, self._size) for image in pair]

    def put(
        self, number: int, x: float, y: float, name: str, colour: str | None, direction: int | None, drawn: int
    ) -> None:
        cell = self._cell(x, y)
        self._names[number, cell] = NAMES.index(name)
        self._drawn[number, cell] = drawn
        if colour is not None:
            self._colours[number, cell] = COLOURS.index(colour)
        if direction is not None:
            self._directions[number, cell] = direction

    def ignore(self, number: int, x: float, y: float) -> None:
        self._names[number, self._cell(x, y)] = IGNORED

    def lesson(self) -> Lesson:
        return Lesson(torch.from_numpy(self._frames), self._names, self._colours, self._directions, self._drawn)

    def _cell(self, x: float, y: float) -> int:
        column, row = int(x * self._columns), int(y * self._rows)
        return min(row, self._rows - 1) * self._columns + min(column, self._columns - 1)


def scaled(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """uint8 [height, width, 3] much as the reference's processor scales it."""
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))
