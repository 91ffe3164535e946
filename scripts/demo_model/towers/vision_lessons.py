"""Makes frames for the vision tower's training, with the correct output for each cell."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo_model.towers.vision_batches import CELL
from demo_model.world.filming import film, sampled
from demo_model.world.grammar import COLOURS, DIRECTIONS, KINDS, Motion, Thing, drawing, motion, scene
from demo_model.world.painting import paint_picture

NAMES = (*KINDS, "house", "tree", "boat")
PAIRS = tuple(Thing(kind, colour).name for kind in KINDS for colour in COLOURS)
"""Each pair of a colour and a kind. The tower outputs the pair in a cell, besides the colour and the kind. Without the
pairs, the sums over several cells would not show which colour belongs to which kind.
"""
WORDS = (*NAMES, *COLOURS, *DIRECTIONS, "drawn", *PAIRS)
"""All words by which the tower can describe a cell."""

# Each original size, with the size to which the reference's processor scales it. Sizes are width and height. Pictures
# are scaled within the bounds of our configuration, and clips are scaled within the processor's own bounds.
PICTURE_SIZES = {(640, 480): (320, 256), (480, 480): (288, 288), (640, 360): (384, 224), (480, 640): (256, 320)}
CLIP_SIZES = {(320, 240): (448, 320), (256, 256): (384, 384)}

MARK = 0.5
"""Each cell that contains strokes of a drawing contains this amount of the drawing. The amount is less than 1, because
many cells contain strokes, and no cell shows the whole drawing.
"""
_RECOGNISABLE = 0.5
"""The minimum share of finished strokes with which a drawing can be recognised. With a smaller share, the correct
answer is not defined.
"""

_CLOSE = 8
"""The width and height of a close-up in cells."""


@dataclass(frozen=True)
class VisionLesson:
    """A batch of frames of one size, with the correct output for each cell.

    Attributes:
        frames: uint8 [batch, 2, height, width, 3].
        amounts: float32 [batch, cells, words]: the amount of each of `WORDS` in each cell. A thing is divided among the
            four cells whose centres are closest to the thing's centre, with shares that add up to one. So the amounts
            are also defined for a thing between two cells, and their sum over all cells is the number of things.
            (Drawings are not counted; see `MARK`.)
        judged: bool [batch, cells]: whether the correct output of a cell is known.
    """

    frames: Tensor
    amounts: Tensor
    judged: Tensor

    def mirrored(self) -> VisionLesson:
        """The same lesson, mirrored from left to right."""
        rows, columns = self.frames.shape[2] // CELL, self.frames.shape[3] // CELL
        swap = list(range(len(WORDS)))
        left, right = WORDS.index("left"), WORDS.index("right")
        swap[left], swap[right] = right, left
        amounts = self.amounts.unflatten(1, (rows, columns)).flip(2).flatten(1, 2)[..., swap]
        return VisionLesson(self.frames.flip(3), amounts, self.judged.unflatten(1, (rows, columns)).flip(2).flatten(1))


def words_for(thing: Thing) -> tuple[str, ...]:
    """The words among `WORDS` that describe `thing`."""
    return thing.kind, thing.colour, thing.name


def picture_lesson(rng: Random, batch: int) -> VisionLesson:
    source = rng.choices(tuple(PICTURE_SIZES), (5, 2, 2, 1))[0]
    table = _Table(batch, PICTURE_SIZES[source])
    for number in range(batch):
        painting = paint_picture(scene(rng), rng, source)
        table.put_frames(number, [painting.image] * 2)
        for placed in painting.placed:
            table.put(number, placed.x, placed.y, words_for(placed.thing))
    return table.lesson()


def clip_lesson(rng: Random, batch: int) -> VisionLesson:
    """Return a lesson about single steps of clips. A step has two frames, half a second apart."""
    source = rng.choices(tuple(CLIP_SIZES), (3, 1))[0]
    table = _Table(batch, CLIP_SIZES[source])
    for number in range(batch):
        shown = motion(rng) if rng.random() < 0.45 else drawing(rng)
        clip = film(shown, rng, source)
        moments = sampled(clip)
        pairs = list(zip(moments[::2], moments[1::2], strict=True))
        # Late steps are chosen more often, because they show more of a drawing.
        first, second = rng.choices(pairs, [number**2 for number in range(1, len(pairs) + 1)])[0]
        table.put_frames(number, [clip.frame(first), clip.frame(second)])
        (x0, y0), (x1, y1) = clip.centre(first), clip.centre(second)
        x, y, share = (x0 + x1) / 2, (y0 + y1) / 2, clip.drawn(second)
        if isinstance(shown, Motion):
            table.put(number, x, y, (*words_for(shown.thing), shown.direction))
        else:
            table.mark(number, clip.marks(second), (shown.sketch, "drawn"), share)
    return table.lesson()


def lessons(seed: int, batch: int, clip_share: float) -> Iterator[VisionLesson]:
    """Yield an unlimited number of lessons. Painting takes time, so each lesson is used about three times, and is
    mirrored before each repetition.
    """
    rng = Random(seed)
    waiting: list[VisionLesson] = []
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
        draw = rng.random()
        if draw < 0.75 * clip_share:
            lesson = close_up(clip_lesson(rng, batch + 1), rng)
        else:
            lesson = clip_lesson(rng, batch // 2) if draw < clip_share else picture_lesson(rng, batch)
        waiting.append(lesson)
        yield lesson


def close_up(lesson: VisionLesson, rng: Random) -> VisionLesson:
    """Cut each frame to the cells around its only thing. The model learns little from empty cells, but an empty cell
    takes as much time as any other cell.
    """
    rows, columns = lesson.frames.shape[2] // CELL, lesson.frames.shape[3] // CELL
    frames: list[Tensor] = []
    amounts: list[Tensor] = []
    judged: list[Tensor] = []
    for frame, amount, known in zip(lesson.frames, lesson.amounts, lesson.judged, strict=True):
        places = torch.nonzero(((amount.sum(-1) > 0) | ~known).unflatten(0, (rows, columns))).float()
        middle = places.mean(0).round().int().tolist() if len(places) else (rows // 2, columns // 2)
        top, left = (
            min(max(at - rng.randint(3, 4), 0), most - _CLOSE) for at, most in zip(middle, (rows, columns), strict=True)
        )
        frames.append(frame[:, top * CELL : (top + _CLOSE) * CELL, left * CELL : (left + _CLOSE) * CELL])
        for table, kept in ((amount, amounts), (known, judged)):
            grid = table.unflatten(0, (rows, columns))
            kept.append(grid[top : top + _CLOSE, left : left + _CLOSE].flatten(0, 1))
    return VisionLesson(torch.stack(frames), torch.stack(amounts), torch.stack(judged))


def shared_out(x: float, y: float, columns: int, rows: int) -> list[tuple[int, float]]:
    """The four cells that share a thing whose centre is at (x, y), each with its share. x and y are fractions of the
    width and the height. The shares sum to one.
    """
    across, down = min(max(x * columns - 0.5, 0), columns - 1), min(max(y * rows - 0.5, 0), rows - 1)
    left, top = min(math.floor(across), columns - 2), min(math.floor(down), rows - 2)
    return [
        ((top + below) * columns + left + beside, (1 - abs(across - left - beside)) * (1 - abs(down - top - below)))
        for below in (0, 1)
        for beside in (0, 1)
    ]


def add_thing(amounts: Tensor, columns: int, x: float, y: float, words: tuple[str, ...]) -> None:
    """Add a thing to the `amounts` [cells, words] of a frame. `words` describe the thing. Its centre is at (x, y), as
    fractions of the width and the height.
    """
    indices = [WORDS.index(word) for word in words]
    for cell, share in shared_out(x, y, columns, len(amounts) // columns):
        amounts[cell, indices] += share


class _Table:
    """Collects the amounts of a lesson while its frames are made."""

    def __init__(self, batch: int, size: tuple[int, int]) -> None:
        self._size = size
        self._columns, self._rows = size[0] // CELL, size[1] // CELL
        cells = self._columns * self._rows
        self._frames = np.empty((batch, 2, size[1], size[0], 3), np.uint8)
        self._amounts = torch.zeros(batch, cells, len(WORDS))
        self._judged = torch.ones(batch, cells, dtype=torch.bool)

    def put_frames(self, number: int, pair: list[Image.Image]) -> None:
        self._frames[number] = [scaled(image, self._size) for image in pair]

    def put(self, number: int, x: float, y: float, words: tuple[str, ...]) -> None:
        add_thing(self._amounts[number], self._columns, x, y, words)

    def mark(self, number: int, points: list[tuple[float, float]], words: tuple[str, ...], done: float) -> None:
        """Add `words` to each cell that contains some of a drawing's `points`.

        While too little is drawn for the drawing to be recognised, these cells get no words and are not judged.
        """
        indices = [WORDS.index(word) for word in words]
        for x, y in points:
            column, row = int(x * self._columns), int(y * self._rows)
            cell = min(max(row, 0), self._rows - 1) * self._columns + min(max(column, 0), self._columns - 1)
            if done >= _RECOGNISABLE:
                self._amounts[number, cell, indices] = MARK
            else:
                self._judged[number, cell] = False

    def lesson(self) -> VisionLesson:
        return VisionLesson(torch.from_numpy(self._frames), self._amounts, self._judged)


def scaled(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """`image` scaled to `size`: uint8 [height, width, 3]. The reference's processor scales in almost the same way."""
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))
