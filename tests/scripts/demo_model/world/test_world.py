"""Pictures and clips of the demo model's world show the things that their facts describe, and are the same for the same
seed.
"""

from random import Random

import numpy as np
import pytest
import torch
from demo_model.towers.vision_lessons import NAMES, WORDS, clip_lesson, picture_lesson, shared_out
from demo_model.world.filming import film, sampled
from demo_model.world.grammar import COLOURS, DIRECTIONS, KINDS, SKETCHES, Drawing, Motion, Picture, Thing, scene
from demo_model.world.painting import paint_picture
from demo_model.world.things import paint

SIZE = (320, 240)


def test_the_same_seed_paints_the_same() -> None:
    first, second = (paint_picture(scene(rng), rng) for rng in (Random(5), Random(5)))

    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))
    assert first.placed == second.placed


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_is_where_it_is_said_to_be(kind: str) -> None:
    rng = Random(7)
    for colour in COLOURS:
        painting = paint_picture(Picture((Thing(kind, colour),)), rng)
        ((x, y),) = [(placed.x, placed.y) for placed in painting.placed]
        pixels = np.asarray(painting.image, np.float32)
        height, width, _ = pixels.shape
        # The middle of a car may be a part of the window or of the door.
        patch = pixels[int(y * height) : int(y * height) + 14, int(x * width) - 12 : int(x * width) + 12].reshape(-1, 3)
        assert nearest_colour(np.median(patch, axis=0)) == colour


def nearest_colour(pixel: np.ndarray) -> str:
    """The colour whose shades are closest to `pixel`, regardless of brightness."""
    rng = Random(0)

    def tint(value: np.ndarray) -> np.ndarray:
        return (value - value.mean()) / (np.linalg.norm(value - value.mean()) + 1e-6)

    shades = {colour: [tint(np.array(paint(colour, rng), float)) for _ in range(60)] for colour in COLOURS}
    return max(COLOURS, key=lambda colour: max(float(shade @ tint(pixel)) for shade in shades[colour]))


def test_what_has_no_room_is_not_counted() -> None:
    crowd = Picture(tuple(Thing("car", "red") for _ in range(60)))
    painting = paint_picture(crowd, Random(2))

    assert 0 < painting.picture.count("car") < 60


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_moving_thing_moves_the_way_it_is_said_to(direction: str) -> None:
    rng = Random(11)
    clip = film(Motion(Thing("circle", "red"), direction), rng, SIZE)
    first, last = (centre_of_red(np.asarray(clip.frame(moment), np.float32)) for moment in (0.0, clip.seconds - 0.1))
    moved = dict(zip(("right", "down"), last - first, strict=True))

    axis, sign = {"left": ("right", -1), "right": ("right", 1), "up": ("down", -1), "down": ("down", 1)}[direction]
    assert sign * moved[axis] > 20
    assert all(abs(way) < 10 for name, way in moved.items() if name != axis)


def centre_of_red(pixels: np.ndarray) -> np.ndarray:
    """The centre of the clearly red pixels: x, y."""
    rows, columns = np.nonzero(pixels[..., 0] - pixels[..., 1:].max(-1) > 80)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("sketch", SKETCHES)
def test_a_drawing_grows(sketch: str) -> None:
    clip = film(Drawing(sketch), Random(13), SIZE)
    shares = [clip.drawn(moment) for moment in np.linspace(0, clip.seconds, 9)]

    assert shares == sorted(shares)
    assert shares[0] < 0.2
    assert shares[-1] == 1.0


def test_frames_are_those_that_the_processor_takes() -> None:
    clip = film(Motion(Thing("car", "blue"), "left"), Random(1), SIZE)
    moments = sampled(clip)

    assert len(moments) % 2 == 0
    assert moments[0] == 0
    assert np.diff(moments) == pytest.approx(0.5, abs=0.05)


def test_a_mirror_swaps_left_and_right() -> None:
    lesson = clip_lesson(Random(3), 6)
    mirrored = lesson.mirrored()
    left, right = (WORDS.index(word) for word in ("left", "right"))

    assert lesson.amounts[..., left].sum().item() == pytest.approx(mirrored.amounts[..., right].sum().item())
    assert mirrored.mirrored().frames.equal(lesson.frames)
    assert mirrored.mirrored().amounts.equal(lesson.amounts)


def test_a_lesson_says_as_much_as_it_shows() -> None:
    lesson = picture_lesson(Random(4), 3)
    names = lesson.amounts[..., : len(NAMES)].sum((1, 2))
    colours = lesson.amounts[..., len(NAMES) : len(NAMES) + len(COLOURS)].sum((1, 2))

    torch.testing.assert_close(names, colours)
    torch.testing.assert_close(names, names.round())


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.5, 0.5), (0.26, 0.999), (1.0, 1.0)])
def test_a_thing_is_shared_out_whole(place: tuple[float, float]) -> None:
    shares = shared_out(*place, 10, 8)

    assert sum(share for _, share in shares) == pytest.approx(1)
    assert all(0 <= cell < 80 and -1e-9 <= share <= 1 for cell, share in shares)
