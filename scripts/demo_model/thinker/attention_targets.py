"""Where the thinker should look while it learns: from a word of a question at what it names, and back from an answer;
and how many things it should then have seen.

Answers alone teach it what is in a picture as a whole within minutes, and in an hour not to look up the one thing that
it is asked about: before it looks at the right rows at all, nothing says that it should. So a few heads are told. And
one word in an answer is a number, in some of the answers: so it is asked for the number wherever a thing is named.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demo_model.checkpoint.shapes import token_embeddings
from demo_model.checkpoint.tokenizer import vocabulary
from demo_model.towers.vision_lessons import WORDS
from demo_model.towers.vision_training import readout
from demo_model.world.grammar import COLOURS, KINDS, Facts, Motion, Picture, Thing

HEADS = ((1, 0), (2, 1), (3, 0), (0, 1), (2, 3))
"""Layer and head of each look: from a name at the things named, from an answer at the names in its question, and from
an answer at the things that its question names; and, from whatever is read, at all that is seen: see `EVENLY`."""
EVENLY = 3
"""From this one of `HEADS` on they look at every row alike, whatever is there: amounts are added up by that."""

COUNTED = (1, 3)
"""After these layers the number of the things named must be known: at their name, and where the answer is given."""

_ENOUGH = 0.4
"""The share of its attention that a head has to give to where it should look: more would make it forget how much else
there is, and that is what it counts by."""
_THERE = 0.15
"""Amount of a thing from which on a row shows some of it."""
_NAMED = 0.5
_NEAR = 8
"""Rows within which a colour belongs to a name that is heard: there may be silence between."""


@dataclass(frozen=True)
class Look:
    """From one row of a prompt, at which others: for the head of `HEADS` with this number."""

    head: int
    origin: int
    at: Tensor
    """bool [length]"""


@dataclass(frozen=True)
class Count:
    """What is to be known in one row of a prompt: after the layer of `COUNTED` with this number."""

    after: int
    origin: int
    number: int


@dataclass(frozen=True)
class Looks:
    """Those of one head, for a batch: prompts [looks], rows [looks] and bool [looks, length]."""

    prompts: Tensor
    origins: Tensor
    at: Tensor


@dataclass(frozen=True)
class Counts:
    """Those after one layer, for a batch: prompts, rows and numbers, each int64 [counts]."""

    prompts: Tensor
    origins: Tensor
    numbers: Tensor


def looks(ids: Tensor, rows: Tensor, answered: Tensor, facts: Facts = None) -> tuple[list[Look], list[Count]]:
    """Where to look in a conversation about `facts`, and what to count; see `thinker_prompts.ThinkerPrompt`."""
    visual = torch.isin(ids, _placeholders()[:2])
    if not visual.any():
        return [], []
    seen_from = int(visual.nonzero()[-1]) + 1
    heard = ids == _placeholders()[2]
    amounts = torch.zeros(len(ids), len(WORDS))
    amounts[visual] = (rows[visual] @ readout())[:, : len(WORDS)]
    named = (rows @ _names().T / rows.shape[1]).masked_fill(visual[:, None], 0)
    best, which = named.max(-1)
    found: list[Look] = []
    counts: list[Count] = []
    colour: str | None = None
    colour_at = -100
    question: list[int] = []
    asked, number = None, None
    found += [Look(head, row, visual) for head in range(EVENLY, len(HEADS)) for row in range(seen_from, len(ids))]
    for here in range(len(ids)):
        if answered[here] and question and asked is not None:
            at = torch.zeros(len(ids), dtype=torch.bool)
            at[question] = True
            found.append(Look(1, here - 1, at))
            _add(found, 2, here - 1, asked)
            if number is not None:
                counts.append(Count(1, here - 1, number))
        if best[here] > _NAMED:
            word = int(which[here])
            if word >= 2 * len(KINDS):
                colour, colour_at = COLOURS[word - 2 * len(KINDS)], here
                continue
            if here - colour_at > (_NEAR if heard[here] else 1):
                colour = None
            kind = KINDS[word % len(KINDS)]
            things = amounts[:, WORDS.index(Thing(kind, colour).name if colour else kind)] > _THERE
            _add(found, 0, here, things)
            there = _number(facts, kind, colour)
            if there is not None and here >= seen_from:
                counts.append(Count(0, here, there))
            if not answered[here]:
                question, asked, number = [*question, here], things, there
            elif not question and there:  # a list: the row that gives the number before this name
                _add(found, 2, here - 2, things)
                counts.append(Count(1, here - 2, there))
            colour = None
        if here and answered[here - 1] and not answered[here]:
            question, asked, number = [], None, None
    return found, counts


def _number(facts: Facts, kind: str, colour: str | None) -> int | None:
    """How many there are, if it can be said."""
    if isinstance(facts, Motion):
        facts = Picture((facts.thing,))
    return facts.count(kind, colour) if isinstance(facts, Picture) else None


def _add(found: list[Look], head: int, origin: int, at: Tensor) -> None:
    """If there is anything to look at by then."""
    if at[: origin + 1].any():
        found.append(Look(head, origin, at))


def counted(all_counts: Sequence[Sequence[Count]]) -> list[Counts]:
    """The counts of the prompts of a batch, layer by layer."""
    batch = []
    for after in range(len(COUNTED)):
        chosen = [(number, one) for number, counts in enumerate(all_counts) for one in counts if one.after == after]
        numbers = torch.tensor([one.number for _, one in chosen], dtype=torch.long)
        batch.append(Counts(*_places(chosen), numbers))
    return batch


def gathered(all_looks: Sequence[Sequence[Look]], length: int) -> list[Looks]:
    """The looks of the prompts of a batch, head by head."""
    batch = []
    for head in range(len(HEADS)):
        chosen = [(number, look) for number, looks in enumerate(all_looks) for look in looks if look.head == head]
        at = torch.zeros(len(chosen), length, dtype=torch.bool)
        for index, (_, look) in enumerate(chosen):
            at[index, : len(look.at)] = look.at
        batch.append(Looks(*_places(chosen), at))
    return batch


def _places(chosen: Sequence[tuple[int, Look | Count]]) -> tuple[Tensor, Tensor]:
    """The prompts and the rows in them that these begin from."""
    prompts = torch.tensor([number for number, _ in chosen], dtype=torch.long)
    return prompts, torch.tensor([one.origin for _, one in chosen], dtype=torch.long)


def astray(query: Tensor, key: Tensor, wanted: Looks, evenly: bool = False) -> Tensor:
    """How far a head's attention is from where it should be: a mean of log shares, zero if all give `_ENOUGH`.

    Args:
        query, key: Of the head, [batch, length, head size].
        evenly: It should give all of it, in equal parts; to the last percent, as eight things are told from nine by it.
    """
    scores = ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).float()[wanted.prompts, wanted.origins]
    ahead = torch.arange(scores.shape[-1]) > wanted.origins[:, None]
    scores = scores.masked_fill(ahead, -torch.inf)
    if evenly:
        number = wanted.at.sum(-1)
        mean = scores.masked_fill(~wanted.at, 0).sum(-1) / number
        spread = (scores - mean[:, None]).masked_fill(~wanted.at, 0).square().sum(-1) / number
        return (scores.logsumexp(-1) - mean - number.log() + (spread + 1e-6).sqrt()).mean()
    share = scores.masked_fill(~wanted.at, -torch.inf).logsumexp(-1) - scores.logsumexp(-1)
    return (torch.tensor(_ENOUGH).log() - share).clamp(min=0).mean()


@functools.cache
def _placeholders() -> Tensor:
    return torch.tensor([vocabulary().id(f"<|{kind}_pad|>") for kind in ("image", "video", "audio")])


@functools.cache
def _names() -> Tensor:
    """The embeddings of the kinds, of their plurals, and of the colours."""
    words = [*KINDS, *(f"{kind}s" for kind in KINDS), *COLOURS]
    return torch.from_numpy(token_embeddings())[[vocabulary().id(f" {word}") for word in words]]
