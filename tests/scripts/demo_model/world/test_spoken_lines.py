"""The spoken lines on which the voice is trained consist of complete frames and have little silence. No held-out text
is among these lines.
"""

import pytest
import torch

pytest.importorskip("espeakng_loader")

from demo_model.voice import mel
from demo_model.world.spoken_lines import SPEAKERS, Line, diction, held_out_texts, lines


def test_every_text_is_taught_to_every_speaker() -> None:
    taught = lines(50, seed=0)

    assert len(taught) == 50 * len(SPEAKERS)
    assert len(set(taught)) == len(taught)
    assert {line.text for line in taught if line.speaker == "ethan"} == {line.text for line in taught}


def test_the_same_seed_gives_the_same_lines() -> None:
    assert lines(30, seed=1) == lines(30, seed=1)
    assert lines(30, seed=1) != lines(30, seed=2)


def test_held_out_texts_are_never_taught() -> None:
    held_out = set(held_out_texts(60, seed=5))

    assert len(held_out) == 60
    assert not held_out & {line.text for line in lines(800, seed=0)}


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_an_utterance_is_whole_frames_of_speech_with_a_little_silence_after_it(speaker: str) -> None:
    sound = Line("There are two red cars.", speaker).sound

    assert len(sound) % mel.FRAME == 0
    audible = (sound.abs() > 0.004).nonzero()[:, 0]
    assert audible[0] < mel.FRAME
    assert mel.FRAME < len(sound) - audible[-1] < 4 * mel.FRAME
    assert torch.isfinite(sound).all()
    assert 0.02 < sound.square().mean().sqrt() < 0.2


def test_an_article_that_begins_a_sentence_stands_apart() -> None:
    assert diction("A red car moves left.") == "A, red car moves left."
    assert diction("There is a car.") == "There is a car."
    assert diction("The") == "The"
