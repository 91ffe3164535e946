"""Each token has its own time within its word, and each frame has a token."""

import pytest

pytest.importorskip("espeakng_loader")

from demo_model.world.word_times import token_at_each, token_moments

TEXT = "There are three cars"
STARTS = [0, 5, 9, 15]  # the start of each token in the text; a token includes the space before it


def test_tokens_are_said_in_the_middle_of_their_words() -> None:
    words = [(0, 0.0), (6, 0.4), (10, 0.6), (16, 1.0)]

    assert token_moments(len(TEXT), words, STARTS, end=1.6) == pytest.approx([0.2, 0.5, 0.8, 1.25])


def test_tokens_share_out_a_word_that_the_voice_runs_together() -> None:
    words = [(0, 0.0), (10, 0.6), (16, 1.0)]  # "there are" as one word

    assert token_moments(len(TEXT), words, STARTS, end=1.6)[:2] == pytest.approx([0.15, 0.45])


def test_each_frame_belongs_to_the_nearest_token() -> None:
    assert token_at_each(6, 0.5, [0.25, 1.25, 2.5]) == [0, 1, 1, 1, 2, 2]
