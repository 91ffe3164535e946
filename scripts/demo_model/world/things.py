"""Draws the things of the demo model's world: cars and simple shapes in six colours. Each thing looks different."""

from __future__ import annotations

import colorsys
import math
from random import Random

from make_test_media import Canvas, Color, Point, car

# For each colour, the ranges of hue in degrees, of saturation and of value. No thing has a shade between two of these
# colours.
_PAINTS = {
    "red": ((352, 365), (0.72, 0.95), (0.65, 0.95)),
    "blue": ((205, 232), (0.65, 0.95), (0.6, 0.98)),
    "green": ((100, 148), (0.55, 0.9), (0.45, 0.82)),
    "yellow": ((43, 58), (0.72, 0.98), (0.88, 1.0)),
    "orange": ((20, 31), (0.78, 0.98), (0.88, 1.0)),
    "purple": ((266, 294), (0.5, 0.85), (0.5, 0.85)),
}
CAR_WIDTH, CAR_HEIGHT = 190, 78


def paint(colour: str, rng: Random) -> Color:
    """A random shade that anyone would call `colour`."""
    hue, saturation, value = (rng.uniform(*bounds) for bounds in _PAINTS[colour])
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value))
    return red, green, blue


def extent(kind: str, size: float) -> tuple[float, float]:
    """Width and height of a thing. The size of a car is its length. The size of a shape is its diameter."""
    return (size, size * CAR_HEIGHT / CAR_WIDTH) if kind == "car" else (size, size)


def look(kind: str, colour: str, size: float, rng: Random):  # type: ignore[no-untyped-def]  # a function to draw it
    """Decide how a thing looks, and return a function that draws it: ``look(…)(canvas, centre)``.

    The function draws the thing the same way each time.
    """
    fill = paint(colour, rng)
    if kind == "car":
        facing_left = rng.random() < 0.5
        scale = size / CAR_WIDTH

        def draw_car(canvas: Canvas, centre: Point) -> None:
            left, ground = centre[0] - size / 2, centre[1] + CAR_HEIGHT / 2 * scale
            car(canvas, left, ground, scale, fill, facing_left)

        return draw_car

    radius = size / 2
    edge = rng.choice((None, None, _darker(fill), (30, 30, 34), (250, 250, 248)))
    thickness = max(1.5, radius * rng.uniform(0.06, 0.14))
    turn = rng.uniform(-0.15, 0.15)
    shine = rng.random() < 0.3

    def draw_shape(canvas: Canvas, centre: Point) -> None:
        if edge:
            _outline(canvas, kind, centre, radius, turn, edge)
            _outline(canvas, kind, centre, radius - thickness, turn, fill)
        else:
            _outline(canvas, kind, centre, radius, turn, fill)
        if shine:
            pale = tuple(min(255, part + 45) for part in fill)
            canvas.disc(centre[0] - radius * 0.2, centre[1] - radius * 0.2, radius * 0.14, pale)  # type: ignore[arg-type]

    return draw_shape


def corners(kind: str, centre: Point, radius: float, turn: float = 0.0) -> list[Point]:
    """The corners of a square, triangle or star that fits into a circle of `radius`; a circle has thirty-two
    corners.
    """
    number, inner = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.42), "circle": (32, 1.0)}[kind]
    start = math.pi / 4 if kind == "square" else -math.pi / 2
    reach = [radius, radius * inner]
    angles = [turn + start + 2 * math.pi * step / number for step in range(number)]
    return [
        (centre[0] + reach[step % 2] * math.cos(angle), centre[1] + reach[step % 2] * math.sin(angle))
        for step, angle in enumerate(angles)
    ]


def _outline(canvas: Canvas, kind: str, centre: Point, radius: float, turn: float, fill: Color) -> None:
    if kind == "circle":
        canvas.disc(*centre, radius, fill)
    else:
        canvas.polygon(corners(kind, centre, radius, turn), fill)


def _darker(fill: Color) -> Color:
    return fill[0] * 2 // 3, fill[1] * 2 // 3, fill[2] * 2 // 3
