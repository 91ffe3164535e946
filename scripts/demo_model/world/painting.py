"""Paints pictures of the demo model's world, and records where each thing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from make_test_media import Canvas, Color, house, tree
from PIL import Image, ImageFilter

from demo_model.world.grammar import Picture, Thing
from demo_model.world.things import extent, look

SIZES = ((640, 480), (640, 480), (640, 480), (480, 480), (640, 360), (480, 640))
_MARGIN = 3
_ATTEMPTS = 40


@dataclass(frozen=True)
class Placed:
    """A thing with the position of its centre, as fractions of width and height."""

    thing: Thing
    x: float
    y: float


@dataclass(frozen=True)
class Painting:
    image: Image.Image
    placed: tuple[Placed, ...]

    @property
    def picture(self) -> Picture:
        """The things that were painted."""
        return Picture(tuple(placed.thing for placed in self.placed))


def paint_picture(scene: Picture, rng: Random, size: tuple[int, int] | None = None, oversampling: int = 1) -> Painting:
    """Paint `scene`. Things for which there is no free place are left out."""
    size = size or rng.choice(SIZES)
    street_scene = rng.random() < (0.5 if any(thing.kind == "car" for thing in scene.things) else 0.15)
    canvas = Canvas(size, background(rng), oversampling)
    (_street if street_scene else rng.choice(_BACKGROUNDS))(canvas, rng)
    if rng.random() < 0.4 and not street_scene:
        _clutter(canvas, rng)

    crowd = max(1.0, (len(scene.things) / 4) ** 0.5)
    scale = rng.uniform(0.75, 1.35) / crowd
    boxes: list[tuple[float, float, float, float]] = []
    cells: set[tuple[int, int]] = set()
    placed = []
    order = list(scene.things)
    rng.shuffle(order)
    for thing in order:
        for _ in range(_ATTEMPTS):
            length = (175 if thing.kind == "car" else 118) * scale * rng.uniform(0.8, 1.25)
            length = min(max(length, 110 if thing.kind == "car" else 72), 240)
            width, height = extent(thing.kind, length)
            if width > size[0] - 8 or height > size[1] - 8:
                continue
            x = rng.uniform(width / 2 + 2, size[0] - width / 2 - 2)
            lowest = 250 if street_scene and thing.kind == "car" and rng.random() < 0.9 else 0
            y = rng.uniform(max(height / 2 + 2, lowest), size[1] - height / 2 - 2)
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            # No two centres may be in the same visual token, no matter to which size the picture is scaled.
            cell = (int(x / size[0] * 8), int(y / size[1] * 8))
            if cell not in cells and not any(_overlap(box, other) for other in boxes):
                look(thing.kind, thing.colour, length, rng)(canvas, (x, y))
                boxes.append(box)
                cells.add(cell)
                placed.append(Placed(thing, x / size[0], y / size[1]))
                break
    return Painting(_aged(canvas.image(), rng), tuple(placed))


def paint_backdrop(canvas: Canvas, rng: Random) -> None:
    """Paint a plain background for a clip."""
    rng.choice(_BACKGROUNDS[:3])(canvas, rng)


def background(rng: Random) -> Color:
    """A pale or dark colour that no thing has."""
    if rng.random() < 0.25:
        grey = rng.randint(20, 110)
        return (grey + rng.randint(-8, 8), grey + rng.randint(-8, 8), grey + rng.randint(-8, 8))
    base = rng.randint(150, 250)
    red, green, blue = (min(255, max(0, base + rng.randint(-30, 20))) for _ in range(3))
    return red, green, blue


def _plain(canvas: Canvas, rng: Random) -> None:
    pass


def _gradient(canvas: Canvas, rng: Random) -> None:
    ends = np.array([background(rng), background(rng)], np.float32)
    share = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    column = (1 - share) * ends[0] + share * ends[1]
    rows = np.repeat(column[:, None], 2, axis=1).astype(np.uint8)
    canvas.paste(Image.fromarray(rows if rng.random() < 0.7 else rows.transpose(1, 0, 2)))


def _mottled(canvas: Canvas, rng: Random) -> None:
    """Soft blotches, like a wall or a meadow out of focus."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    grain = numbers.normal(0, rng.uniform(5, 22), (rng.randint(4, 30), rng.randint(4, 30), 1))
    canvas.paste(Image.fromarray(np.clip(np.array(background(rng)) + grain, 0, 255).astype(np.uint8)))


def _paper(canvas: Canvas, rng: Random) -> None:
    """Ruled or squared paper."""
    step, ink = rng.randint(24, 60), background(rng)
    width, height = canvas.size
    for y in range(step, height, step):
        canvas.line([(0, y), (width, y)], ink, 1)
    if rng.random() < 0.5:
        for x in range(step, width, step):
            canvas.line([(x, 0), (x, height)], ink, 1)


def _meadow(canvas: Canvas, rng: Random) -> None:
    width, height = canvas.size
    horizon = height * rng.uniform(0.3, 0.7)
    _sky(canvas, rng, horizon)
    shade = rng.randint(-20, 20)
    canvas.rectangle(0, horizon, width, height, (150 + shade, 182 + shade, 130 + shade))
    for _ in range(rng.randint(0, 2)):
        tree(canvas, rng.uniform(20, width - 20), horizon + 4)


def _sky(canvas: Canvas, rng: Random, horizon: float) -> None:
    width = canvas.size[0]
    shade = rng.randint(-16, 10)
    for row in range(0, round(horizon), 8):
        pale = round(60 * row / horizon)
        canvas.rectangle(0, row, width, row + 8, (150 + shade + pale, 200 + shade + pale // 2, 238 + shade + pale // 6))
    if rng.random() < 0.5:
        canvas.disc(rng.uniform(40, width - 40), rng.uniform(30, 80), rng.uniform(22, 40), (255, 236, 150))
    for _ in range(rng.randint(0, 3)):
        x, y, scale = rng.uniform(20, width - 20), rng.uniform(20, 120), rng.uniform(0.6, 1.2)
        for dx, dy, radius in ((-34, 6, 18), (-10, -4, 24), (18, 0, 22), (40, 8, 15)):
            canvas.disc(x + dx * scale, y + dy * scale, radius * scale, (250, 252, 255))


def _street(canvas: Canvas, rng: Random) -> None:
    """Houses and a tree behind a pavement and a road, as in tests/data/cars.jpg."""
    width, height = canvas.size
    _sky(canvas, rng, 260)
    x = rng.uniform(-60, 30)
    while x < width:
        front = rng.uniform(110, 165)
        if rng.random() < 0.8:
            wall = tuple(rng.randint(150, 236) for _ in range(3))
            roof = rng.choice(((150, 72, 58), (110, 96, 104), (128, 84, 66), (92, 88, 120), background(rng)))
            house(canvas, x, rng.uniform(90, 140), front, wall=wall, roof=roof)  # type: ignore[arg-type]
        x += front + rng.uniform(8, 50)
    for _ in range(rng.randint(0, 2)):
        tree(canvas, rng.uniform(20, width - 20), 258)
    canvas.rectangle(0, 258, width, 300, (190, 186, 178))
    canvas.rectangle(0, 296, width, 304, (150, 147, 142))
    grey = rng.randint(70, 125)
    canvas.rectangle(0, 304, width, height, (grey, grey + 2, grey + 8))
    lane = rng.uniform(0.3, 0.7) * (height - 304) + 304
    for left in range(rng.randint(-110, 0), width, 110):
        canvas.polygon([(left + 8, lane), (left + 68, lane), (left + 62, lane + 8), (left, lane + 8)], (232, 228, 214))


_BACKGROUNDS: tuple[Callable[[Canvas, Random], None], ...] = (_plain, _gradient, _mottled, _paper, _meadow)


def _clutter(canvas: Canvas, rng: Random) -> None:
    """Marks that do not count as things: grey blots, thin lines, dots."""
    width, height = canvas.size
    for _ in range(rng.randint(1, 6)):
        x, y, ink = rng.uniform(0, width), rng.uniform(0, height), background(rng)
        draw = rng.random()
        if draw < 0.4:
            canvas.disc(x, y, rng.uniform(10, 60), ink, flattened=rng.uniform(0.15, 0.6))
        elif draw < 0.8:
            canvas.line([(x, y), (x + rng.uniform(-160, 160), y + rng.uniform(-160, 160))], ink, rng.uniform(1, 5))
        else:
            canvas.disc(x, y, rng.uniform(2, 6), ink)


def _aged(image: Image.Image, rng: Random) -> Image.Image:
    """`image` with a random choice of effects: a little blur, another exposure, grain."""
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.5:
        # The exposure uses a lookup table, and the grain uses integers, because floats for every pixel would take ten
        # times as long.
        gain, offset = rng.uniform(0.85, 1.1), rng.uniform(-10, 10)
        image = image.point([round(min(255, max(0, (value - 128) * gain + 128 + offset))) for value in range(256)] * 3)
        numbers, coarseness = np.random.default_rng(rng.getrandbits(32)), rng.randint(1, 14)
        grain = numbers.integers(-coarseness, coarseness + 1, (image.height, image.width, 3), np.int16)
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    return image


def _overlap(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return (
        box[0] < other[2] + _MARGIN
        and other[0] < box[2] + _MARGIN
        and box[1] < other[3] + _MARGIN
        and other[1] < box[3] + _MARGIN
    )
