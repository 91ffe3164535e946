"""Makes additional targets for the thinker's training. A *row* is the vector of one token, or of one part of a picture,
clip or sound, in the prompt. There are two kinds of targets: the rows that an attention head should attend to, and the
number of things that a row should contain.

From the answers alone, the thinker learns within minutes which things a picture shows. But even in an hour it does not
learn to find the one thing that a question is about. The reason is that a head gets no gradient towards the right rows
as long as it does not attend to them at all. So a few heads get targets. The row of a name should attend to the things
that it names. The rows of an answer should attend to the question, and to the things that the question names. Two
more heads should attend to all visual rows evenly. Numbers get targets too: in each row that names a thing, the thinker
must predict the number of these things. From the answers alone, the thinker would learn too little about numbers,
because only some answers contain a number, and only as a single word.
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
"""The layer and the number of each head with a target. The first head attends from a name to the things that it names.
The second head attends from an answer to the names in its question. The third head attends from an answer to the things
that its question names. The last two heads attend from each row after the visual rows to all visual rows (see
`EVENLY`).
"""
EVENLY = 3
"""The heads in `HEADS` from this index on attend to all visual rows evenly, whatever the rows show. So the outputs of
these heads are averages over the rows. The averages are proportional to the total amounts of the things.
"""

COUNTED = (1, 3)
"""The layers after which the thinker must know the number of things. After the first of these layers, the row of a name
must contain the number. After the second of these layers, the rows that predict the answer must contain the number.
"""

_ENOUGH = 0.4
"""A head must give at least this share of its attention to its target rows. The output of the head also depends on the
number of rows that are not targets, and the thinker uses this for counting. If the required share were larger, the
number of these rows would hardly change the output.
"""
_THERE = 0.15
"""A visual row shows a thing if the amount of the thing in the row is larger than this number."""
_NAMED = 0.5
"""A row is a name of a thing if its similarity to the embedding of the name is larger than this number."""
_NEAR = 8
"""The maximum distance in rows from a spoken colour to the name that it belongs to. Rows of silence may lie between
them.
"""


@dataclass(frozen=True)
class Look:
    """A target for one head: the rows of a prompt that the row `origin` should attend to."""

    head: int
    """Index into `HEADS`."""
    origin: int
    at: Tensor
    """bool [length]: the target rows."""


@dataclass(frozen=True)
class Count:
    """A number that the thinker must know in the row `origin` of a prompt."""

    after: int
    """Index into `COUNTED`: the layer after which the number must be known."""
    origin: int
    number: int


@dataclass(frozen=True)
class Looks:
    """All `Look`s of one head in a batch: their prompts [looks], origins [looks] and targets, bool [looks, length]."""

    prompts: Tensor
    origins: Tensor
    at: Tensor


@dataclass(frozen=True)
class Counts:
    """All `Count`s after one layer in a batch: their prompts, origins and numbers, each int64 [counts]."""

    prompts: Tensor
    origins: Tensor
    numbers: Tensor


def looks(ids: Tensor, rows: Tensor, answered: Tensor, facts: Facts = None) -> tuple[list[Look], list[Count]]:
    """The attention targets and the number targets of a conversation about `facts`. The arguments are fields of a
    `prompts.ThinkerPrompt`.
    """
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
            # in a list of things, the row that predicts the number is two rows before the name
            elif not question and there:
                _add(found, 2, here - 2, things)
                counts.append(Count(1, here - 2, there))
            colour = None
        if here and answered[here - 1] and not answered[here]:
            question, asked, number = [], None, None
    return found, counts


def _number(facts: Facts, kind: str, colour: str | None) -> int | None:
    """The number of things of this kind and colour in `facts`; None if the things in `facts` cannot be counted."""
    if isinstance(facts, Motion):
        facts = Picture((facts.thing,))
    return facts.count(kind, colour) if isinstance(facts, Picture) else None


def _add(found: list[Look], head: int, origin: int, at: Tensor) -> None:
    """Add an attention target for the row `origin`. If neither this row nor an earlier row is a target row, add
    nothing, because a row cannot attend to later rows.
    """
    if at[: origin + 1].any():
        found.append(Look(head, origin, at))


def counted(all_counts: Sequence[Sequence[Count]]) -> list[Counts]:
    """Collect the `Count`s of a batch's prompts, layer by layer."""
    batch = []
    for after in range(len(COUNTED)):
        chosen = [(number, one) for number, counts in enumerate(all_counts) for one in counts if one.after == after]
        numbers = torch.tensor([one.number for _, one in chosen], dtype=torch.long)
        batch.append(Counts(*_places(chosen), numbers))
    return batch


def gathered(all_looks: Sequence[Sequence[Look]], length: int) -> list[Looks]:
    """Collect the `Look`s of a batch's prompts, head by head."""
    batch = []
    for head in range(len(HEADS)):
        chosen = [(number, look) for number, looks in enumerate(all_looks) for look in looks if look.head == head]
        at = torch.zeros(len(chosen), length, dtype=torch.bool)
        for index, (_, look) in enumerate(chosen):
            at[index, : len(look.at)] = look.at
        batch.append(Looks(*_places(chosen), at))
    return batch


def _places(chosen: Sequence[tuple[int, Look | Count]]) -> tuple[Tensor, Tensor]:
    """Two tensors, each with one entry for each pair in `chosen`. The first tensor contains the indices of the prompts.
    The second tensor contains the rows `origin`.
    """
    prompts = torch.tensor([number for number, _ in chosen], dtype=torch.long)
    return prompts, torch.tensor([one.origin for _, one in chosen], dtype=torch.long)


def astray(query: Tensor, key: Tensor, wanted: Looks, evenly: bool = False) -> Tensor:
    """The mean distance of a head's attention from its targets. If `evenly` is false, the distance of a target is zero
    as soon as the target's rows together get at least the share `_ENOUGH` of the attention.

    Args:
        query, key: The head's queries and keys, [batch, length, head size].
        wanted: The head's targets.
        evenly: Whether the head should divide all its attention equally among the target rows. The shares of the rows
            must agree to within one percent. With larger differences, the sum over the rows would not show whether
            there are eight things or nine.
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
