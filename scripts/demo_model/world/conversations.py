"""Makes conversations about a picture or clip, with typed or spoken questions. The parts of a message come in all
orders that clients may use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from torch import Tensor

from demo_model.checkpoint.tokenizer import vocabulary
from demo_model.thinker.prompts import AnsweredTurn, PromptPart, Seen
from demo_model.world.grammar import UNKNOWN, Exchange, Facts, Picture, ask

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech.",
)


@dataclass(frozen=True)
class LabelledConversation:
    """A conversation for training. `tasks` and `spoken` have one entry for each turn."""

    turns: tuple[AnsweredTurn, ...]
    tasks: tuple[str, ...]
    spoken: tuple[bool, ...]
    system: str | None = None
    facts: Facts = None


def converse(
    facts: Facts,
    seen: Seen | None,
    hear: Callable[[Exchange, Random], tuple[Exchange, Tensor]],
    rng: Random,
    spoken_share: float = 0.5,
    most_turns: int = 4,
) -> LabelledConversation:
    """Return a conversation of a few random questions about `facts`.

    Args:
        seen: The vision tower's output for `facts`; None if nothing is shown.
        hear: A function that is called with an exchange whose question must be spoken. It returns the exchange and the
            rows of the spoken question. If it has no rows for this question, it returns another exchange and the rows
            of that exchange's question.
    """
    turns, tasks, spoken = [], [], []
    number = rng.randint(1, most_turns if isinstance(facts, Picture) else 3)
    for index in range(number):
        exchange = ask(facts, rng)
        aloud = rng.random() < spoken_share
        if aloud:
            exchange, rows = hear(exchange, rng)
            question = PromptPart(heard=rows)
        else:
            exchange = _garbled(rng) if exchange.answer == UNKNOWN and rng.random() < 0.4 else exchange
            question = PromptPart(text=typed(exchange.question, rng))
        parts = [question]
        if index == 0 and seen is not None:
            parts.insert(0 if rng.random() < 0.7 else 1, PromptPart(seen=seen))
        turns.append(AnsweredTurn(tuple(parts), exchange.answer))
        tasks.append(exchange.task)
        spoken.append(aloud)
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.05 else None
    return LabelledConversation(tuple(turns), tuple(tasks), tuple(spoken), system, facts)


def typed(question: str, rng: Random) -> str:
    """`question` as people type it: sometimes without the question mark, sometimes with a lower-case first letter."""
    if rng.random() < 0.15:
        question = question.rstrip(".?!")
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    return question


def _garbled(rng: Random) -> Exchange:
    """Random words as a question. The correct answer is always `UNKNOWN`."""
    tokens = vocabulary().tokens
    words = b"".join(tokens[rng.randrange(256, len(tokens))] for _ in range(rng.randint(2, 10)))
    text = words.decode("utf-8", "replace").strip() or "?"
    return Exchange(text, UNKNOWN, "elsewhere")
