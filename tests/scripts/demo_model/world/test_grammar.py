"""The questions and answers of the demo model's world are right. The same seed gives the same questions and answers."""

from random import Random

from demo_model.checkpoint.tokenizer import vocabulary
from demo_model.world.grammar import (
    DIRECTIONS,
    SKETCHES,
    STILL,
    UNKNOWN,
    Drawing,
    Motion,
    Picture,
    Thing,
    all_words,
    ask,
    facts,
    scene,
)

CARS = Picture((Thing("car", "red"), Thing("car", "blue"), Thing("car", "yellow")))


def asked(shown: object, task: str) -> list[tuple[str, str]]:
    """Random questions of one task about the picture or clip `shown`, with the right answers."""
    rng = Random(0)
    exchanges = [ask(shown, rng) for _ in range(1500)]  # type: ignore[arg-type]
    return [(exchange.question, exchange.answer) for exchange in exchanges if exchange.task == task]


def test_the_same_seed_asks_the_same() -> None:
    first, second = ([ask(facts(rng), rng) for _ in range(50)] for rng in (Random(3), Random(3)))

    assert first == second


def test_things_are_counted() -> None:
    answers = dict(asked(CARS, "count"))

    assert answers["How many cars are there in the picture?"] == "There are three cars."
    assert answers["How many blue cars are there?"] == "There is one blue car."
    assert answers["How many stars are there?"] == "There are no stars."


def test_colours_are_named_in_one_order() -> None:
    assert set(dict(asked(CARS, "colour")).values()) == {"The cars are red, blue and yellow."}
    assert set(dict(asked(Picture((Thing("star", "green"),)), "colour")).values()) == {"The star is green."}


def test_what_is_there_is_told_from_what_is_not() -> None:
    for question, answer in asked(CARS, "exists"):
        there = "car" in question and not any(colour in question for colour in ("green", "orange", "purple"))
        assert answer.startswith("Yes" if there else "No"), question


def test_things_are_listed() -> None:
    shown = Picture((Thing("star", "red"), Thing("circle", "red"), Thing("star", "blue")))

    assert set(dict(asked(shown, "list")).values()) == {"I see one circle and two stars."}
    assert set(dict(asked(Picture(()), "list")).values()) == {"I see no cars or shapes."}


def test_motion_has_a_direction_and_a_picture_has_none() -> None:
    for direction in DIRECTIONS:
        motion = Motion(Thing("car", "red"), direction)
        assert set(dict(asked(motion, "direction")).values()) == {f"The car moves {direction}."}
    assert set(dict(asked(CARS, "still")).values()) == {STILL}


def test_drawings_have_names() -> None:
    for sketch in SKETCHES:
        assert (
            dict(asked(Drawing(sketch), "drawing"))["What is being drawn in the video?"]
            == f"A {sketch} is being drawn."
        )


def test_what_is_outside_the_world_gets_an_honest_answer() -> None:
    answers = dict(asked(None, "elsewhere"))

    assert answers["What is the capital of France?"] == UNKNOWN


def test_a_scene_is_small_enough_to_count() -> None:
    rng = Random(1)
    for _ in range(300):
        shown = scene(rng)
        assert len(shown.things) <= 10
        assert all(shown.count(thing.kind) <= 9 for thing in shown.things)


def test_every_word_of_the_world_is_few_tokens() -> None:
    tokens = set(vocabulary().tokens)

    assert [word for word in all_words() if word.encode() not in tokens] == ["Summarise", "summarise"]


def test_the_vocabulary_is_the_one_that_the_shipped_weights_know() -> None:
    """A new word in the grammar would change the id of every token after it."""
    assert len(vocabulary()) == 1244
