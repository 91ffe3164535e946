"""A person asks about pictures, clips and sounds on the page, and reads and hears right answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from demo_model.judge.speech_recogniser import transcribe, word_errors

from tests.clients.playground.page import OpenPage

Open = Callable[..., OpenPage]


def test_a_typed_question_about_a_picture_is_answered_in_text_and_speech(open_page: Open, data: Path) -> None:
    page = open_page()
    page.set_seed(1)
    page.listen()
    page.attach(data / "cars.jpg")
    page.ask("How many cars are there in the picture?")
    answer = page.answer()
    assert answer["text"] == "There are three cars."
    assert answer["played"] == pytest.approx(answer["soundSeconds"], abs=0.01)
    sound = page.heard()
    assert numpy.abs(sound).max() > 0.1
    errors, _ = word_errors("There are three cars.", transcribe(sound, 24000))
    assert errors == 0


@pytest.mark.parametrize(
    ("example", "right"),
    [
        ("Count the cars", "There are three cars."),
        ("Ask aloud about the picture", "There are three cars."),
        ("What is being drawn?", "A house is being drawn."),
    ],
)
def test_the_examples_are_answered_right(open_page: Open, example: str, right: str) -> None:
    page = open_page()
    page.tab.get_by_role("button", name=example).click()
    assert page.answer()["text"] == right


def test_a_second_question_is_about_the_same_picture(open_page: Open, data: Path) -> None:
    page = open_page()
    page.tab.get_by_label("Speak the answer").click()
    page.attach(data / "cars.jpg")
    page.ask("How many cars are there in the picture?")
    assert page.answer()["soundSeconds"] == 0
    page.ask("Is there a red car?")
    page.until(lambda: page.tab.locator(".answer").count() == 2)
    assert page.answer()["text"] == "Yes, there is a red car."
