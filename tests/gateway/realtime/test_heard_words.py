"""Tests which words of a spoken answer count as heard."""

from __future__ import annotations

import pytest

from gateway.realtime.items.heard_words import FRAME_SAMPLES, FRAMES_PER_TOKEN, SpokenWords, samples_in

TEXT = ["One ", "two ", "three ", "four."]


def spoken(frames: int, *, complete: bool, pieces: list[str] = TEXT) -> SpokenWords:
    words = SpokenWords()
    for piece in pieces:
        words.add_text(piece, 1)
    words.add_sound(frames * FRAME_SAMPLES)
    words.complete = complete
    return words


@pytest.mark.parametrize(
    ("share", "heard"), [(0, ""), (0.1, ""), (0.2, "One"), (0.5, "One two"), (0.9, "One two three"), (1, "".join(TEXT))]
)
def test_a_complete_answer_shares_its_duration_by_length(share, heard):
    words = spoken(40, complete=True)
    assert words.heard(share * words.samples) == heard


def test_beyond_the_end_all_is_heard():
    assert spoken(40, complete=True).heard(samples_in(10**9)) == "One two three four."


def test_an_incomplete_answer_comes_at_the_pace_of_speech():
    words = spoken(8, complete=False)
    frame = FRAMES_PER_TOKEN * FRAME_SAMPLES
    assert [words.heard(count * frame + 1) for count in range(4)] == ["", "One", "One two", "One two three"]


def test_nothing_is_heard_before_the_talker_took_it_in():
    words = spoken(4, complete=True, pieces=["Immediately ", "a ", "b ", "c"])
    assert words.heard(0.9 * FRAME_SAMPLES) == ""
    assert words.heard(3.5 * FRAME_SAMPLES) == "Immediately a"


def test_text_of_several_tokens_is_divided_between_them():
    words = SpokenWords()
    words.add_text("One two three four.", 4)
    words.add_sound(FRAME_SAMPLES)
    assert words.heard(2.1 * FRAMES_PER_TOKEN * FRAME_SAMPLES) == "One two"


def test_scripts_without_spaces_are_cut_between_characters():
    words = spoken(40, complete=True, pieces=["这", "里", "有", "车"])
    assert words.heard(words.samples / 2) == "这里"


def test_an_answer_without_sound_is_whole():
    assert SpokenWords("Earlier.").heard(5) == "Earlier."


@pytest.mark.parametrize("samples", [0, 5, 10_000])
def test_an_answer_without_text_has_no_words(samples):
    assert spoken(10, complete=False, pieces=[]).heard(samples) == ""
