"""The thinker's heads get the right targets: a name attends to the things that it names, and an answer attends to its
question.
"""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from demo_model.checkpoint.shapes import token_embeddings  # noqa: E402
from demo_model.checkpoint.tokenizer import tokenizer, vocabulary  # noqa: E402
from demo_model.thinker.attention_targets import EVENLY, HEADS, Count, Looks, astray, counted, gathered, looks  # noqa: E402
from demo_model.thinker.decoder_batches import think  # noqa: E402
from demo_model.thinker.prompts import AnsweredTurn, PromptPart, Seen, ThinkerPrompt, prompt, together  # noqa: E402
from demo_model.thinker.training import ADDED_UP, ThinkerDecoder, sum_directions  # noqa: E402
from demo_model.towers.vision_lessons import WORDS, words_for  # noqa: E402
from demo_model.towers.vision_training import spelled_out  # noqa: E402
from demo_model.world.grammar import Picture, Thing  # noqa: E402

FROM_NAME, TO_NAME, FROM_ANSWER = range(3)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer(directory)
    return directory


def picture(*things: str) -> Seen:
    """The facts of a picture with two rows of three cells. The first cells show the given things, such as "red car"."""
    amounts = torch.zeros(6, len(WORDS))
    for cell, thing in enumerate(things):
        colour, kind = thing.split()
        amounts[cell, [WORDS.index(word) for word in words_for(Thing(kind, colour))]] = 1
    return Seen((1, 2, 3), spelled_out(amounts)[None], is_clip=False)


def found(one: ThinkerPrompt) -> set[tuple[int, str, tuple[int, ...]]]:
    """The attention targets of a prompt, as head, token and positions. A position is the number of a picture's cell, or
    the negative of a row number.
    """
    tokens = vocabulary().tokens
    cells = (one.ids == vocabulary().id("<|image_pad|>")).nonzero()[:, 0].tolist()
    result = set()
    for look in looks(one.ids, one.rows, one.answered)[0]:
        if look.head >= EVENLY:
            continue
        at = tuple(cells.index(row) if row in cells else -row for row in look.at.nonzero()[:, 0].tolist())
        token = int(one.ids[look.origin])
        result.add((look.head, tokens[token].decode() if token < len(tokens) else "heard", at))
    return result


def test_a_name_looks_at_the_things_that_it_names(names: Path) -> None:
    seen = picture("red car", "blue car", "red star")
    one = prompt(
        [AnsweredTurn((PromptPart(seen=seen), PromptPart(text="How many cars are there?")), "There are two cars.")],
        names,
    )

    assert (FROM_NAME, " cars", (0, 1)) in found(one)
    assert not any(head == FROM_NAME and name not in (" cars",) for head, name, _ in found(one))


def test_a_coloured_name_looks_at_those_of_the_colour(names: Path) -> None:
    seen = picture("red car", "blue car", "red star")
    one = prompt(
        [AnsweredTurn((PromptPart(seen=seen), PromptPart(text="Is there a red car?")), "Yes, there is a red car.")],
        names,
    )

    assert (FROM_NAME, " car", (0,)) in found(one)


def test_an_answer_looks_at_its_question_and_at_what_that_names(names: Path) -> None:
    seen = picture("red car", "blue car", "red star")
    turns = [
        AnsweredTurn((PromptPart(seen=seen), PromptPart(text="Is there a star?")), "Yes, there is a star."),
        AnsweredTurn((PromptPart(text="How many cars are there?"),), "There are two cars."),
    ]
    one = prompt(turns, names)
    asked = one.ids.tolist().index(vocabulary().id(" cars"))

    assert (TO_NAME, "\n", (-asked,)) in found(one)  # the row that predicts the first word of the answer
    assert (FROM_ANSWER, "\n", (0, 1)) in found(one)
    assert (FROM_ANSWER, "\n", (2,)) in found(one)  # the answer of the first turn attends to the star


def test_nobody_looks_ahead_or_at_what_is_not_there(names: Path) -> None:
    seen = picture("red car")
    first = prompt(
        [AnsweredTurn((PromptPart(text="How many cars are there?"), PromptPart(seen=seen)), "There is one car.")], names
    )
    absent = prompt(
        [AnsweredTurn((PromptPart(seen=seen), PromptPart(text="Is there a star?")), "No, there is no star.")], names
    )

    asked = first.ids.tolist().index(vocabulary().id(" cars"))
    assert all(look.origin > asked for look in looks(first.ids, first.rows, first.answered)[0])
    assert (FROM_ANSWER, "\n", (0,)) in found(first)
    assert {head for head, _, _ in found(absent)} == {TO_NAME}


def test_a_colour_that_is_heard_belongs_to_the_name_after_a_silence(names: Path) -> None:
    table, id_ = torch.from_numpy(token_embeddings()), vocabulary().id
    said = [id_("<|audio_pad|>"), id_(" red"), id_("<|audio_pad|>"), id_("<|audio_pad|>"), id_(" cars")]
    seen = picture("red car", "blue car")
    one = prompt([AnsweredTurn((PromptPart(seen=seen), PromptPart(heard=table[said])), "There is one red car.")], names)

    assert (FROM_NAME, "heard", (0,)) in found(one)


def test_things_are_to_be_counted_where_they_are_named_and_where_it_is_answered(names: Path) -> None:
    facts = Picture((Thing("car", "red"), Thing("car", "blue"), Thing("star", "red")))
    seen = picture("red car", "blue car", "red star")
    turns = [
        AnsweredTurn((PromptPart(seen=seen), PromptPart(text="Are there any red cars?")), "Yes, there is a red car."),
        AnsweredTurn((PromptPart(text="What do you see?"),), "I see two cars and one star."),
    ]
    one = prompt(turns, names, facts=facts)
    _, counts = looks(one.ids, one.rows, one.answered, one.facts)
    tokens = vocabulary().tokens
    told = {(count.after, tokens[int(one.ids[count.origin])].decode(), count.number) for count in counts}

    named = {(0, " cars", 1), (0, " car", 1), (0, " cars", 2), (0, " star", 1)}
    answered = {(1, token, 1) for token in ("\n", "Yes", ",", " there", " is", " a", " red", " car", ".")}
    listed = {(1, " see", 2), (1, " and", 1)}
    assert told == named | answered | listed


def test_counts_of_a_batch_know_whose_they_are() -> None:
    after_first, after_second = counted([[Count(0, 5, 3)], [Count(1, 7, 2), Count(0, 9, 0)]])

    assert after_first.prompts.tolist() == [0, 1]
    assert after_first.origins.tolist() == [5, 9]
    assert after_first.numbers.tolist() == [3, 0]
    assert after_second.numbers.tolist() == [2]


def test_only_where_attention_is_short_it_is_astray() -> None:
    at = torch.tensor([[False, True, False]])
    wanted = Looks(torch.tensor([0]), torch.tensor([1]), at)
    key = torch.eye(3)[None] * 20
    there, elsewhere = key.roll(0, 1), key[:, [0, 0, 2]]

    assert astray(there, key, wanted) == 0
    assert astray(elsewhere, key, wanted) > 3
    assert gathered([[], []], 3)[0].at.shape == (0, 3)


def test_even_looks_are_astray_unless_all_is_looked_at_alike() -> None:
    wanted = Looks(torch.tensor([0]), torch.tensor([2]), torch.tensor([[True, True, False, False]]))
    query = torch.ones(1, 4, 4)
    even = torch.tensor([[20.0, 20.0, -20.0, 20.0]])[..., None].expand(1, 4, 4)  # the last row comes after the origin
    uneven = torch.tensor([[20.0, 18.0, -20.0, 20.0]])[..., None].expand(1, 4, 4)

    assert astray(query, even, wanted, evenly=True) == pytest.approx(0, abs=2e-3)
    assert astray(query, uneven, wanted, evenly=True) > 1


@torch.no_grad()
def test_a_new_thinker_adds_up_what_it_sees(names: Path) -> None:
    amounts = torch.zeros(80, len(WORDS))
    for cell in range(7):
        thing = Thing("car", "red" if cell < 4 else "blue")
        amounts[11 * cell, [WORDS.index(word) for word in words_for(thing)]] = 1
    seen = Seen((1, 8, 10), spelled_out(amounts).expand(4, -1, -1), is_clip=False)
    one = together(
        [prompt([AnsweredTurn((PromptPart(seen=seen), PromptPart(text="How many cars are there?")), "One.")], names)]
    )
    layer, head = HEADS[EVENLY]
    model = ThinkerDecoder().model
    attention = model.layers[layer].self_attn
    directions = attention.o_proj.weight[:, head * attention.head_dim : (head + 1) * attention.head_dim].clone()
    attention.o_proj.weight.zero_()
    attention.o_proj.weight[:, head * attention.head_dim : (head + 1) * attention.head_dim] = directions
    for mixer in model.layers:  # so that only the head under test adds to the rows
        mixer.mlp.experts.down_proj.zero_()
    for other in model.layers[1:]:
        other.self_attn.o_proj.weight.zero_()

    *_, between = think(model, one.rows, one.positions)
    last = int((one.targets[0] >= 0).nonzero()[0])
    told = torch.linalg.lstsq(sum_directions().T, (between[0][0, last] - one.rows[0, last])[:, None]).solution[:, 0]
    sums = dict(zip(ADDED_UP, told.tolist(), strict=True))
    assert sums["car"] == pytest.approx(7, abs=1.5)
    assert sums["red car"] == pytest.approx(4, abs=1)
    assert sums["blue car"] == pytest.approx(3, abs=1)
    assert all(abs(sums[absent]) < 0.7 for absent in ("star", "green", "red star", "green car"))
