"""Makes clips of the demo model's world: a thing that moves, or a pencil that draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from make_test_media import Canvas, Color, Point, path_length, pencil, resampled
from PIL import Image

from demo_model.world.grammar import Drawing, Motion
from demo_model.world.painting import background, paint_backdrop
from demo_model.world.things import corners, extent, look

SIZES = ((320, 240), (320, 240), (320, 240), (256, 256))
"""Width and height of clips. Other sizes would cost more visual tokens."""


@dataclass(frozen=True)
class FilmedClip:
    """A clip whose frames can be rendered for any moment.

    Attributes:
        frame: The picture at a moment between 0 and `seconds`.
        centre: The centre of the moving thing at a moment, or of the whole drawing, as fractions of width and height.
        drawn: The share of the drawing that is finished at a moment, 0 to 1; always 1 in a clip without a drawing.
        marks: The points of the drawing (without its surroundings) that are visible at a moment, as fractions.
    """

    size: tuple[int, int]
    seconds: float
    frame: Callable[[float], Image.Image]
    centre: Callable[[float], Point]
    drawn: Callable[[float], float]
    marks: Callable[[float], list[Point]]


def film_motion(motion: Motion, rng: Random, size: tuple[int, int]) -> FilmedClip:
    """Return a clip in which a thing crosses part of the picture at a steady pace."""
    backdrop = Canvas(size, background(rng), 2)
    paint_backdrop(backdrop, rng)
    behind = backdrop.image()
    seconds = rng.choice((2.0, 2.0, 2.4, 3.0))
    length = rng.uniform(64, 120) if motion.thing.kind == "car" else rng.uniform(46, 84)
    draw = look(motion.thing.kind, motion.thing.colour, length, rng)
    width, height = extent(motion.thing.kind, length)
    step_x, step_y = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[motion.direction]
    room = (size[0] - width) * abs(step_x) + (size[1] - height) * abs(step_y)
    way = min(room, rng.uniform(28, 46) * seconds)
    spare_x, spare_y = size[0] - width - way * abs(step_x), size[1] - height - way * abs(step_y)
    first_x = width / 2 + rng.random() * spare_x + way * (step_x < 0)
    first_y = height / 2 + rng.random() * spare_y + way * (step_y < 0)
    wobble = rng.uniform(0, 3)

    def at(moment: float) -> Point:
        gone = way * moment / seconds
        sway = wobble * math.sin(4 * moment)
        return first_x + step_x * gone + abs(step_y) * sway, first_y + step_y * gone + abs(step_x) * sway

    def frame(moment: float) -> Image.Image:
        canvas = Canvas(size, (0, 0, 0), 2)
        canvas.paste(behind)
        draw(canvas, at(moment))
        return canvas.image()

    return FilmedClip(
        size, seconds, frame, lambda moment: _share(at(moment), size), lambda moment: 1.0, lambda moment: []
    )


def film_drawing(drawing: Drawing, rng: Random, size: tuple[int, int]) -> FilmedClip:
    """Return a clip in which a pencil draws one thing stroke by stroke. Sometimes it draws some surroundings after the
    thing.
    """
    seconds = rng.choice((2.0, 3.0, 3.0, 4.0))
    paper = background(rng) if rng.random() < 0.3 else _paper(rng)
    dark_paper = sum(paper) < 330
    extent_ = rng.uniform(100, min(170, size[1] - 60))
    centre = (
        rng.uniform(extent_ * 0.58 + 4, size[0] - extent_ * 0.58 - 4),
        rng.uniform(extent_ * 0.5 + 16, size[1] - extent_ * 0.5 - 12),
    )
    strokes = [
        (resampled([(centre[0] + x * extent_, centre[1] + y * extent_) for x, y in line]), _ink(rng, dark_paper))
        for line in _sketch(drawing.sketch, rng)
    ]
    own = len(strokes)
    if rng.random() < 0.5:
        strokes += [(resampled(line), _ink(rng, dark_paper)) for line in _surroundings(centre, extent_, size, rng)]
    if rng.random() < 0.6:  # all strokes have one colour
        strokes = [(line, strokes[0][1]) for line, _ in strokes]
    lengths = np.cumsum([0.0, *(path_length(line) + 10 for line, _ in strokes)])
    begin, end = rng.uniform(0.0, 0.08), rng.uniform(0.8, 0.95)
    thickness = rng.uniform(2, 4)

    def progress(moment: float) -> float:
        """The total length of the strokes drawn so far, in pixels."""
        return float(lengths[-1] * min(1.0, max(0.0, (moment / seconds - begin) / (end - begin))))

    def visible(number: int, moment: float) -> list[Point]:
        """The part of a stroke that is already drawn."""
        line, _ = strokes[number]
        share = (progress(moment) - lengths[number]) / (lengths[number + 1] - lengths[number])
        return line[: math.ceil(min(1.0, max(0.0, share)) * len(line))]

    def frame(moment: float) -> Image.Image:
        canvas = Canvas(size, paper, 2)
        tip = strokes[0][0][0]
        for number, (_, ink) in enumerate(strokes):
            if len(points := visible(number, moment)) > 1:
                canvas.line(points, ink, thickness)
                tip = points[-1]
        if progress(moment) < lengths[-1]:
            pencil(canvas, *tip)
        return canvas.image()

    return FilmedClip(
        size,
        seconds,
        frame,
        lambda moment: _share(centre, size),
        lambda moment: min(1.0, progress(moment) / lengths[own]),
        lambda moment: [_share(point, size) for number in range(own) for point in visible(number, moment)[::4]],
    )


def sampled(clip: FilmedClip, fps: float = 2.0) -> list[float]:
    """The times of the frames that the reference's processor samples from this clip, if the clip has 25 frames per
    second.
    """
    total = round(clip.seconds * 25)
    count = max(4, int(total / 25 * fps) // 2 * 2)
    return [int(index) / 25 for index in np.arange(0, total, total / count)]


Line = list[Point]


def _sketch(name: str, rng: Random) -> list[Line]:
    """The strokes of a drawing whose middle is at (0, 0) and whose longer side is 1."""
    match name:
        case "circle" | "square" | "triangle" | "star":
            points = corners(name, (0, 0), 0.5, rng.uniform(-0.25, 0.25))
            return [[*points, points[0]]]
        case "house":
            lines = [
                [(-0.42, -0.1), (-0.42, 0.5), (0.42, 0.5), (0.42, -0.1), (-0.42, -0.1)],
                [(-0.5, -0.08), (0, -0.5), (0.5, -0.08)],
                [(-0.08, 0.5), (-0.08, 0.18), (0.1, 0.18), (0.1, 0.5)],
            ]
            if rng.random() < 0.7:
                lines.append([(0.2, -0.33), (0.2, -0.48), (0.34, -0.48), (0.34, -0.21)])
            if rng.random() < 0.8:
                for left in (-0.34, 0.17):
                    lines.append([(left, 0), (left + 0.17, 0), (left + 0.17, 0.17), (left, 0.17), (left, 0)])
                    if rng.random() < 0.5:
                        lines.append([(left + 0.085, 0), (left + 0.085, 0.17)])
            return lines
        case "car":
            body = [(-0.5, 0.1), (-0.48, -0.06), (-0.32, -0.08), (-0.2, -0.24), (0.14, -0.24), (0.3, -0.06)]
            body += [(0.48, -0.02), (0.5, 0.1), (-0.5, 0.1)]
            lines = [body, _ring(-0.27, 0.1, 0.11), _ring(0.27, 0.1, 0.11)]
            if rng.random() < 0.7:
                lines.append([(-0.16, -0.08), (-0.1, -0.19), (0.1, -0.19), (0.2, -0.08), (-0.16, -0.08)])
            return lines
        case "tree":
            crown = _ring(0, -0.18, 0.32)
            if rng.random() < 0.5:
                crown = [
                    (
                        0.32 * math.cos(a) * (1 + 0.12 * math.cos(7 * a)),
                        -0.18 + 0.32 * math.sin(a) * (1 + 0.12 * math.cos(7 * a)),
                    )
                    for a in np.linspace(0, 2 * math.pi, 50)
                ]
            trunk = [[(-0.06, 0.14), (-0.07, 0.5)], [(0.06, 0.14), (0.07, 0.5)]]
            return [crown, *trunk] if rng.random() < 0.5 else [*trunk, crown]
        case "boat":
            hull = [(-0.5, 0.2), (0.5, 0.2), (0.32, 0.45), (-0.32, 0.45), (-0.5, 0.2)]
            sails = [[(0.03, -0.5), (0.4, 0.1), (0.03, 0.1)], [(-0.03, -0.4), (-0.34, 0.1), (-0.03, 0.1)]]
            return [hull, [(0, 0.2), (0, -0.5)], *sails[: rng.randint(1, 2)]]
    raise ValueError(f"there is no sketch of a {name}")


def _surroundings(centre: Point, extent_: float, size: tuple[int, int], rng: Random) -> list[Line]:
    """Strokes around the drawing: sometimes the ground under it, sometimes a sun beside it."""
    lines: list[Line] = []
    if rng.random() < 0.5:
        y = min(size[1] - 6, centre[1] + extent_ * 0.5)
        lines.append([(max(6, centre[0] - extent_ * 0.9), y), (min(size[0] - 6, centre[0] + extent_ * 0.9), y)])
    left = centre[0] > size[0] / 2
    x, y, radius = (34 if left else size[0] - 34), 34, rng.uniform(11, 20)
    if abs(x - centre[0]) > extent_ * 0.5 + radius * 1.9 and rng.random() < 0.8:
        lines.append(_ring(x, y, radius))
        for step in range(8):
            angle = step * math.pi / 4
            lines.append([(x + r * math.cos(angle), y + r * math.sin(angle)) for r in (radius * 1.3, radius * 1.75)])
    return lines


def _ring(x: float, y: float, radius: float) -> Line:
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 36)]


def _paper(rng: Random) -> Color:
    white = rng.randint(236, 255)
    return white, white - rng.randint(0, 4), white - rng.randint(0, 14)


def _ink(rng: Random, dark_paper: bool) -> Color:
    low, high = (170, 255) if dark_paper else (20, 120)
    red, green, blue = (rng.randint(low, high) for _ in range(3))
    if rng.random() < 0.5:  # a coloured pencil
        strong = rng.randrange(3)
        values = [red, green, blue]
        values[strong] = min(255, values[strong] + 100)
        red, green, blue = values
    return red, green, blue


def _share(point: Point, size: tuple[int, int]) -> Point:
    return point[0] / size[0], point[1] / size[1]


def film(shown: Motion | Drawing, rng: Random, size: tuple[int, int] | None = None) -> FilmedClip:
    size = size or rng.choice(SIZES)
    return film_motion(shown, rng, size) if isinstance(shown, Motion) else film_drawing(shown, rng, size)
