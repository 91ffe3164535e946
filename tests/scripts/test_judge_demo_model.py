"""The judge counts the answers that equal the right answer exactly, and measures how much of the speech is
understood.
"""

import base64
import io
import wave
from itertools import islice

import pytest
from demo_model.judge.held_out import Example, examples
from judge_demo_model import Verdict, scores, speech
from PIL import Image


def verdict(answer: str, text: str, heard: str | None = None, **about: object) -> Verdict:
    example = Example([], answer, "count", "picture", "typed")
    return Verdict(Example(**(vars(example) | about)), text, heard)  # type: ignore[arg-type]


def test_answers_are_counted_by_task_and_by_how_they_were_asked() -> None:
    table = scores(
        [
            verdict("There is one car.", "There is one car."),
            verdict("There is one car.", "There is one car"),
            verdict("The car moves left.", "The car moves left.", task="direction", shown="clip", how="spoken"),
            verdict("There are two stars.", "There are two stars.", second=True),
        ]
    )

    assert (table["all"].right, table["all"].of) == (3, 4)
    assert (table["all typed"].right, table["all typed"].of) == (2, 3)
    assert (table["all clips"].right, table["clip, spoken"].of, table["task direction"].of) == (1, 1, 1)
    assert table["second question"].of == 1
    assert table["all"].wrong == [("There is one car.", "There is one car")]


def test_a_voice_is_judged_against_its_own_text() -> None:
    voice = speech(
        [
            verdict("There is one car.", "There are three cars.", "There are three cars."),
            verdict("There is one car.", "There are three cars.", "There are free"),
            verdict("There is one car.", "There are three cars."),
        ]
    )

    assert voice["word error rate"] == pytest.approx(2 / 8)
    assert voice["answers heard exactly"] == pytest.approx(1 / 2)
    assert voice["last word heard"] == pytest.approx(1 / 2)
    assert voice["last word missing"] == pytest.approx(1 / 2)


def test_held_out_examples_are_the_same_for_the_same_seed() -> None:
    first, second = (list(islice(examples(9), 2)) for _ in range(2))

    assert first == second


def test_held_out_examples_are_files_that_a_server_can_read() -> None:
    kinds = set()
    for example in islice(examples(3), 12):
        assert example.messages[-1]["role"] == "user"
        for part in example.messages[-1]["content"]:
            kinds.add(part["type"])
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                assert Image.open(io.BytesIO(data)).format == "JPEG"
            elif part["type"] == "input_audio":
                with wave.open(io.BytesIO(base64.b64decode(part["input_audio"]["data"]))) as sound:
                    assert sound.getframerate() == 16_000
                    assert sound.getnframes() > 8_000
    assert kinds == {"text", "image_url", "video_url", "input_audio"}
