"""Makes the pictures of the README from the real page. `make pictures` copies them to docs/."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from PIL import Image

from tests.clients.playground.conftest import PICTURES
from tests.clients.playground.page import OpenPage

Open = Callable[..., OpenPage]
Picture = Callable[[OpenPage, str], Path]

SIZE = {"width": 640, "height": 760}
MOST_BYTES = 400_000
LAST_SECONDS = 2.5  # the duration of the last frame of a scene


class Film:
    """Pictures of a page. A picture is shown until the time at which the next picture was taken."""

    def __init__(self, page: OpenPage) -> None:
        self._page = page
        self._frames: list[tuple[bytes, float]] = []  # picture, time at which it was taken

    def shoot(self) -> None:
        """Take one picture."""
        self._frames.append((self._page.tab.screenshot(), time.monotonic()))

    def hold(self) -> None:
        """Show the latest picture for `LAST_SECONDS`."""
        picture, taken = self._frames[-1]
        self._frames.append((picture, taken + LAST_SECONDS))

    def save(self, path: Path) -> None:
        """Write the film as a WebP file that repeats forever."""
        images = [Image.open(io.BytesIO(picture)).convert("RGB") for picture, _ in self._frames]
        times = [taken for _, taken in self._frames]
        shown = [min(LAST_SECONDS, max(0.05, after - before)) for before, after in pairwise(times)]
        images[0].save(
            path,
            save_all=True,
            append_images=images[1:],
            duration=[round(1000 * each) for each in [*shown, LAST_SECONDS]],
            loop=0,
            quality=80,
            method=6,
        )


def test_the_picture_of_the_readme(open_page: Open, picture: Picture, data: Path) -> None:
    page = open_page(viewport={"width": 920, "height": 970})
    page.attach(data / "cars.jpg")
    page.ask("How many cars are there in the picture?")
    page.answer()
    page.tab.get_by_role("button", name="Show the timeline over the stages").click()
    page.tab.wait_for_selector(".timeline")
    page.tab.mouse.move(0, 0)
    assert picture(page, "readme").stat().st_size < MOST_BYTES


def test_the_moving_picture_of_the_readme(open_page: Open, data: Path) -> None:
    """A question, its answer, and the pipeline at work."""
    page = open_page(viewport=SIZE)
    film = Film(page)
    page.attach(data / "cars.jpg")
    question = page.tab.get_by_label("Question")
    for word in ("How many", " cars are", " there in", " the picture?"):
        question.press_sequentially(word)
        film.shoot()
    question.press("Enter")
    while (last := page.last()) is None or not last["over"] or last["state"] != "complete":
        film.shoot()
    assert last["played"] > 0
    film.shoot()
    film.hold()
    page.tab.get_by_role("button", name="New chat").click()
    page.tab.get_by_role("button", name="What is being drawn?").click()
    page.tab.get_by_role("link", name="Pipeline").click()
    while (last := page.last()) is None or last["state"] != "complete":
        film.shoot()
    film.shoot()
    film.hold()
    PICTURES.mkdir(parents=True, exist_ok=True)
    film.save(PICTURES / "readme.webp")
    assert (PICTURES / "readme.webp").stat().st_size < MOST_BYTES
