"""Makes questions and answers about a small world from a fixed grammar. All other questions get the answer
`UNKNOWN`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

KINDS = ("car", "circle", "square", "triangle", "star")
COLOURS = ("red", "blue", "green", "yellow", "orange", "purple")
DIRECTIONS = ("left", "right", "up", "down")
SKETCHES = ("house", "circle", "star")
"""The drawings that the pencil makes in clips."""
DRAWABLE = (*SKETCHES, "car", "square", "triangle", "tree", "boat")
"""All drawings that clips could show. Clips show only `SKETCHES`, but the tokenizer has the words for all drawings."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

UNKNOWN = "I only know cars and simple shapes."
NOTHING_SHOWN = "Please show me a picture."
STILL = "Nothing moves in the picture."
HELLO = "Hello! Show me a picture of cars or shapes."
MYSELF = "I am a small demo model. I know cars and simple shapes."
WELCOME = "You are welcome."

MOST_COLOURS_NAMED = 3


@dataclass(frozen=True)
class Thing:
    kind: str
    colour: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Picture:
    """A still picture of things."""

    things: tuple[Thing, ...]

    def count(self, kind: str, colour: str | None = None) -> int:
        return sum(thing.kind == kind and colour in (None, thing.colour) for thing in self.things)


@dataclass(frozen=True)
class Motion:
    """A clip in which one thing moves."""

    thing: Thing
    direction: str


@dataclass(frozen=True)
class Drawing:
    """A clip in which a pencil draws one thing, stroke by stroke."""

    sketch: str


Facts = Picture | Motion | Drawing | None
"""The contents of the picture or clip that a question is about; None if nothing is shown."""


@dataclass(frozen=True)
class Exchange:
    """A question and the one right answer to it.

    `task` is the kind of question: count, colour, exists, list, direction, mover, drawing, happens, still, elsewhere.
    """

    question: str
    answer: str
    task: str


def ask(facts: Facts, rng: Random) -> Exchange:
    """Return a question about `facts` with its answer. Occasionally, the question is about something else."""
    if rng.random() < _ELSEWHERE[type(facts)]:
        return elsewhere(rng)
    match facts:
        case Picture():
            return _about_picture(facts, rng)
        case Motion():
            return _about_motion(facts, rng)
        case Drawing():
            question = rng.choice(_WHAT_IS_DRAWN)
            return Exchange(question, f"{_a(facts.sketch).capitalize()} is being drawn.", "drawing")
    return Exchange(_about_picture(Picture(()), rng).question, NOTHING_SHOWN, "elsewhere")


def elsewhere(rng: Random) -> Exchange:
    """Return small talk with its answer, or a question about something that is not in the world. The answer to such a
    question is `UNKNOWN`.
    """
    draw = rng.random()
    if draw < 0.08:
        return Exchange(rng.choice(_HELLOS), HELLO, "elsewhere")
    if draw < 0.2:
        return Exchange(rng.choice(_WHO), MYSELF, "elsewhere")
    if draw < 0.25:
        return Exchange(rng.choice(_THANKS), WELCOME, "elsewhere")
    if draw < 0.5:
        return Exchange(rng.choice(_OTHER_QUESTIONS), UNKNOWN, "elsewhere")
    question = rng.choice(_OTHER_TEMPLATES)
    noun = rng.choice(_OTHER_NOUNS)
    return Exchange(question.format(noun=noun, nouns=_plural(noun), a_noun=_a(noun)), UNKNOWN, "elsewhere")


def scene(rng: Random) -> Picture:
    """Return random contents for a picture: usually up to three kinds, at most nine things of a kind and ten in all.

    If there is no room for all of them, `painting` leaves out some.
    """
    kinds = rng.sample(KINDS, rng.choices((0, 1, 2, 3, 4), (2, 40, 34, 18, 6))[0])
    things: list[Thing] = []
    for index, kind in enumerate(kinds):
        number = rng.randint(1, 9) if index == 0 else rng.randint(1, 4)
        colours = rng.sample(COLOURS, rng.randint(1, min(number, MOST_COLOURS_NAMED)))
        drawn = [*colours, *rng.choices(colours, k=number)][:number]
        things += [Thing(kind, colour) for colour in drawn]
    return Picture(tuple(things[:10]))


def motion(rng: Random) -> Motion:
    return Motion(Thing(rng.choice(KINDS), rng.choice(COLOURS)), rng.choice(DIRECTIONS))


def drawing(rng: Random) -> Drawing:
    return Drawing(rng.choice(SKETCHES))


def facts(rng: Random) -> Facts:
    """Return something to show: a picture more often than a clip, and sometimes nothing."""
    make = rng.choices((scene, motion, drawing, lambda _: None), (55, 20, 15, 10))[0]
    return make(rng)


def answer(rng: Random) -> str:
    """Return a random answer. Each answer is as probable as in a conversation."""
    return ask(facts(rng), rng).answer


def all_words() -> list[str]:
    """Every word and punctuation mark of the world's texts, including a preceding space if the texts have one."""
    found: Counter[str] = Counter()
    for text in _all_texts():
        for spelling in (text, text[0].lower() + text[1:]):
            pieces = spelling.replace(".", " . ").replace("?", " ? ").replace(",", " , ").replace("!", " ! ").split()
            found[pieces[0]] += 1
            found.update(f" {piece}" if piece[0].isalpha() else piece for piece in pieces[1:])
    return sorted(found)


# Questions about a picture


def _about_picture(picture: Picture, rng: Random) -> Exchange:
    draw = rng.random()
    if draw < 0.46:
        return _count(picture, rng)
    if draw < 0.63:
        return _colour(picture, rng) or _count(picture, rng)
    if draw < 0.8:
        return _exists(picture, rng)
    if draw < 0.97:
        return Exchange(rng.choice(_WHAT_IS_THERE), f"{_listing(picture)}.", "list")
    return Exchange(
        rng.choice(_WHICH_WAY).format(noun=rng.choice((*KINDS, "it"))).replace("the it", "it"), STILL, "still"
    )


def _count(picture: Picture, rng: Random) -> Exchange:
    kind, colour = _target(picture, rng, absent=0.12)
    number = picture.count(kind, colour)
    name = f"{colour} {kind}" if colour else kind
    return Exchange(rng.choice(_HOW_MANY).format(nouns=_plural(name)), f"{_there_are(number, name)}.", "count")


def _colour(picture: Picture, rng: Random) -> Exchange | None:
    askable = [(kind, colours) for kind in KINDS if 0 < len(colours := _colours(picture, kind)) <= MOST_COLOURS_NAMED]
    if not askable:
        return None
    kind, colours = rng.choice(askable)
    if picture.count(kind) == 1:
        return Exchange(rng.choice(_WHAT_COLOUR).format(noun=kind), f"The {kind} is {colours[0]}.", "colour")
    question = rng.choice(_WHAT_COLOURS).format(nouns=_plural(kind))
    return Exchange(question, f"The {_plural(kind)} are {_joined(colours)}.", "colour")


def _exists(picture: Picture, rng: Random) -> Exchange:
    kind, colour = _target(picture, rng, absent=0.5)
    name = f"{colour} {kind}" if colour else kind
    question = rng.choice(_IS_THERE).format(a_noun=_a(name), nouns=_plural(name))
    if picture.count(kind, colour):
        return Exchange(question, f"Yes, there is {_a(name)}.", "exists")
    return Exchange(question, f"No, there is no {name}.", "exists")


def _target(picture: Picture, rng: Random, absent: float) -> tuple[str, str | None]:
    """Choose the kind, or the kind and the colour, that a question asks for. With probability `absent`, choose one that
    the picture does not show.
    """
    coloured = rng.random() < 0.35
    if picture.things and rng.random() >= absent:
        kind = rng.choice(sorted({thing.kind for thing in picture.things}))
        return kind, rng.choice(_colours(picture, kind)) if coloured else None
    missing = [kind for kind in KINDS if not picture.count(kind)]
    if not coloured and missing:
        return rng.choice(missing), None
    pairs = [(kind, colour) for kind in KINDS for colour in COLOURS if not picture.count(kind, colour)]
    # In the hard cases, the picture has things of this kind, but in another colour.
    near = [(kind, colour) for kind, colour in pairs if picture.count(kind)]
    return rng.choice(near if near and rng.random() < 0.6 else pairs)


def _listing(picture: Picture) -> str:
    counts = [(picture.count(kind), kind) for kind in KINDS]
    parts = [_number(number, kind) for number, kind in counts if number]
    return f"I see {_joined(parts)}" if parts else "I see no cars or shapes"


# Questions about a clip in which something moves


def _about_motion(motion: Motion, rng: Random) -> Exchange:
    kind, name = motion.thing.kind, motion.thing.name
    draw = rng.random()
    if draw < 0.5:
        noun = rng.choice((f"the {kind}", f"the {name}", "it"))
        question = rng.choice(_WHICH_WAY).replace("the {noun}", noun)
        return Exchange(question, f"The {kind} moves {motion.direction}.", "direction")
    if draw < 0.65:
        return Exchange(rng.choice(_WHAT_MOVES), f"{_a(name).capitalize()} is moving.", "mover")
    if draw < 0.8:
        question = rng.choice(_WHAT_HAPPENS)
        return Exchange(question, f"{_a(name).capitalize()} moves {motion.direction}.", "happens")
    still = Picture((motion.thing,))
    return rng.choice((_colour, _exists, _count))(still, rng) or _count(still, rng)


# Words


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def _number(number: int, noun: str) -> str:
    return f"{NUMBERS[number]} {noun if number == 1 else _plural(noun)}"


def _there_are(number: int, noun: str) -> str:
    return f"There {'is' if number == 1 else 'are'} {_number(number, noun)}"


def _joined(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _colours(picture: Picture, kind: str) -> list[str]:
    return [colour for colour in COLOURS if picture.count(kind, colour)]


def _all_texts() -> Iterator[str]:
    yield from (UNKNOWN, NOTHING_SHOWN, STILL, HELLO, MYSELF, WELCOME, *_HELLOS, *_WHO, *_THANKS, *_OTHER_QUESTIONS)
    names = [*KINDS, *(f"{colour} {kind}" for kind in KINDS for colour in COLOURS), *DRAWABLE]
    templates = [*_HOW_MANY, *_WHAT_COLOUR, *_WHAT_COLOURS, *_IS_THERE, *_WHAT_IS_THERE, *_WHICH_WAY, *_WHAT_MOVES]
    templates += [*_WHAT_HAPPENS, *_WHAT_IS_DRAWN]
    for template in templates:
        for name in names:
            yield template.format(noun=name, nouns=_plural(name), a_noun=_a(name))
    for template in _WHICH_WAY:
        yield template.replace("the {noun}", "it")
    for name in names:
        for number in range(10):
            yield f"{_there_are(number, name)}."
            yield f"I see {_number(number, name)}, {_number(number, name)} and {_number(number, name)}."
        yield f"Yes, there is {_a(name)}."
        yield f"No, there is no {name}."
        for colour in COLOURS:
            yield f"The {name} is {colour}."
            yield f"The {_plural(name)} are {colour}, {colour} and {colour}."
        for direction in DIRECTIONS:
            yield f"The {name} moves {direction}."
            yield f"{_a(name).capitalize()} moves {direction}."
        yield f"{_a(name).capitalize()} is moving."
        yield f"{_a(name).capitalize()} is being drawn."
    yield "I see no cars or shapes."
    yield "I know pictures and clips."  # these words are not in the grammar, but users will type them


_ELSEWHERE = {Picture: 0.05, Motion: 0.05, Drawing: 0.08, type(None): 0.75}

_HOW_MANY = (
    "How many {nouns} are there in the picture?",
    "How many {nouns} are there in the picture?",
    "How many {nouns} are there?",
    "How many {nouns} are there?",
    "How many {nouns} are in the picture?",
    "How many {nouns} are in the image?",
    "How many {nouns} do you see?",
    "How many {nouns} can you see?",
    "How many {nouns} can you see in the picture?",
    "Count the {nouns}.",
    "Please count the {nouns}.",
    "Can you count the {nouns}?",
)
_WHAT_COLOUR = (
    "What colour is the {noun}?",
    "What color is the {noun}?",
    "What is the colour of the {noun}?",
    "What is the color of the {noun}?",
    "Which colour is the {noun}?",
    "Which color does the {noun} have?",
    "What colour is the {noun} in the picture?",
)
_WHAT_COLOURS = (
    "What colour are the {nouns}?",
    "What color are the {nouns}?",
    "What are the colours of the {nouns}?",
    "What are the colors of the {nouns}?",
    "Which colours are the {nouns}?",
    "Which colors do the {nouns} have?",
    "What colour are the {nouns} in the picture?",
)
_IS_THERE = (
    "Is there {a_noun}?",
    "Is there {a_noun} in the picture?",
    "Is there {a_noun} in the image?",
    "Are there any {nouns}?",
    "Are there any {nouns} in the picture?",
    "Do you see {a_noun}?",
    "Can you see {a_noun}?",
    "Do you see any {nouns} in the picture?",
)
_WHAT_IS_THERE = (
    "What is in the picture?",
    "What is in the image?",
    "What do you see?",
    "What do you see in the picture?",
    "What can you see?",
    "List the things in the picture.",
    "List all the things you see.",
    "Describe the picture.",
    "Describe the image.",
    "What is there in the picture?",
    "What is this?",
)
_WHICH_WAY = (
    "Which way does the {noun} move?",
    "Which way is the {noun} moving?",
    "Which way does the {noun} go?",
    "Where does the {noun} go?",
    "Where is the {noun} going?",
    "In which direction does the {noun} move?",
    "In which direction is the {noun} moving?",
    "Which direction does the {noun} move?",
)
_WHAT_MOVES = (
    "What is moving?",
    "What moves?",
    "What is moving in the video?",
    "What moves in the clip?",
    "What do you see moving?",
)
_WHAT_HAPPENS = (
    "What happens?",
    "What happens in the video?",
    "What is happening?",
    "What is happening in the video?",
    "Describe the video.",
    "Describe the clip.",
)
_WHAT_IS_DRAWN = (
    "What is being drawn in the video?",
    "What is being drawn in the video?",
    "What is being drawn?",
    "What is drawn in the clip?",
    "What is drawn?",
    "What is the pencil drawing?",
    "What does the pencil draw?",
    "What do you see being drawn?",
    "What is happening in the video?",
    "What happens in the video?",
    "Describe the video.",
)
_HELLOS = ("Hello.", "Hello!", "Hi.", "Hi!", "Good morning.", "Hello, how are you?", "Hey there.")
_WHO = (
    "Who are you?",
    "What are you?",
    "What can you do?",
    "What do you know?",
    "What is your name?",
    "How can you help me?",
    "Tell me about yourself.",
    "What can I ask you?",
)
_THANKS = ("Thank you.", "Thanks.", "Thank you very much.", "Thanks a lot!")
_OTHER_QUESTIONS = (
    "Tell me a story.",
    "Tell me a joke.",
    "What time is it?",
    "What day is today?",
    "What is the weather like today?",
    "Sing a song.",
    "Write a poem about the sea.",
    "What is two plus two?",
    "What is the meaning of life?",
    "Translate this sentence into French.",
    "Who wrote this book?",
    "Where do you live?",
    "How old are you?",
    "Why is the sky blue?",
    "How do I cook rice?",
    "Who is the president?",
    "What is the capital of France?",
    "How far is the moon?",
    "Can you drive a car?",
    "Do you like music?",
    "What should I eat tonight?",
    "Say something nice.",
    "How tall is the tower?",
    "What does the sign say?",
    "Read the text aloud.",
    "Who is in the picture?",
    "Is the person happy?",
    "What is the man doing?",
    "Write some code.",
    "Summarise the article.",
    "What did I say before?",
    "Is it going to rain tomorrow?",
    "How much does it cost?",
    "When was the war?",
    "Give me a recipe for bread.",
    "Play the piano.",
)
_OTHER_TEMPLATES = (
    "How many {nouns} are there in the picture?",
    "How many {nouns} are there?",
    "How many {nouns} do you see?",
    "Is there {a_noun} in the picture?",
    "Is there {a_noun}?",
    "What colour is the {noun}?",
    "What is the name of the {noun}?",
    "Which way does the {noun} move?",
    "Tell me about the {noun}.",
    "Where is the {noun}?",
    "What is {a_noun}?",
    "Who owns the {noun}?",
    "Why do {nouns} exist?",
    "Can you draw {a_noun}?",
    "How big is the {noun}?",
    "What does {a_noun} eat?",
)
_OTHER_NOUNS = (
    "dog", "cat", "bird", "person", "man", "woman", "child", "table", "chair", "bottle", "apple", "banana", "flower",
    "horse", "cow", "sheep", "elephant", "plane", "train", "bus", "bicycle", "ship", "mountain", "river", "cloud",
    "window", "door", "phone", "book", "lamp", "cup", "plate", "fork", "shoe", "hat", "ball", "hexagon", "heart",
    "arrow", "robot", "fish", "spider", "guitar", "computer", "key", "bridge", "street", "city", "king", "queen",
)  # fmt: skip
