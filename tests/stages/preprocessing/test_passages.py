"""A text that is read aloud is cut at the ends of paragraphs and sentences, and no word of it is lost."""

from __future__ import annotations

import random
import time

import pytest

from stages.preprocessing.passages import LONGEST, SLACK, passages, size_of

SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody is surprised. "


def size(text: str) -> float:
    return sum(map(size_of, text))


@pytest.mark.parametrize("text", ["Hello.", "  Hello there!\n", "你好。", "One. Two? Three!", "a", "\u200d"])
def test_a_short_text_is_one_passage_without_white_space_around_it(text: str) -> None:
    assert list(passages(text)) == [text.strip()]


@pytest.mark.parametrize("text", ["", " \n\t ", "\u3000" * 5000])
def test_white_space_has_no_passages(text: str) -> None:
    assert list(passages(text)) == []


@pytest.mark.parametrize(
    "sentence",
    [
        SENTENCE,
        "Is it true? ",
        "这是一个很长的句子，里面有很多字。",
        "「そうですか？」",
        "Она сказала: «Я приду завтра утром.» ",
        "Mr. Smith met J. R. Jones at 5.30 p.m. and left. ",
    ],
)
def test_a_long_text_is_cut_after_sentences(sentence: str) -> None:
    cut = list(passages(sentence * 200))
    assert len(cut) > 2
    assert all(part + sentence[len(sentence.rstrip()) :] == sentence * part.count(sentence.strip()) for part in cut)


def test_a_paragraph_is_the_best_border() -> None:
    first, second = SENTENCE * 8, SENTENCE * 12
    assert next(passages(f"{first}\n\n{second}")) == first.strip()


def test_without_sentences_a_text_is_cut_after_clauses_words_or_anywhere() -> None:
    assert all(part.endswith(",") for part in list(passages("one two three, " * 200))[:-1])
    assert all(part.endswith("word") for part in passages("word " * 1000))
    assert {len(part) for part in list(passages("x" * 5000))[:-1]} == {int(LONGEST / 0.25)}


def test_a_letter_keeps_its_accents() -> None:
    letter = "a\u0308\u0301"
    assert all(not len(part) % len(letter) for part in passages(letter * 3000))


def test_the_last_passage_is_never_tiny() -> None:
    for count in range(1, 60):
        cut = list(passages(SENTENCE * count))
        assert len(cut) == 1 or size(cut[-1]) > (SLACK - 1) * LONGEST / 2


@pytest.mark.parametrize("seed", range(30))
def test_every_word_of_any_text_comes_once_and_in_order(seed: int) -> None:
    dice = random.Random(seed)
    alphabet = dice.choice(["ab .", "ab.!?\n ,;", "漢字。！「」 ", "1 2.3", "é\u0301\u200d👩🏽‍🚀. ", "\r\n\t a"])
    text = "".join(dice.choice(alphabet) for _ in range(dice.randrange(1, 6000)))
    cut = list(passages(text))
    assert "".join("".join(cut).split()) == "".join(text.split())
    assert all(part and part == part.strip() and size(part) <= SLACK * LONGEST for part in cut)


@pytest.mark.parametrize(
    "text", ["." * 100_000, "a" * 100_000, " " * 100_000, "\n" * 100_000, '."' * 50_000, "1" * 99_999]
)
def test_the_time_grows_with_the_length_of_any_text(text: str) -> None:
    began = time.process_time()
    list(passages(text))
    assert time.process_time() - began < 2
