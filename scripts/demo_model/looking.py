"""Where the thinker should look while it learns: from a word of a question at what it names, and back from an answer.

Answers alone teach it what is in a picture as a whole within minutes, and in an hour not to look up the one thing that
it is asked about: before it looks at the right rows at all, nothing says that it should. So a few heads are told.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .language import COLOURS, KINDS
from .lessons import WORDS
from .shapes import token_embeddings
from .tokenizer import vocabulary
from .vision_training import codebook

HEADS = ((1, 0), (2, 1), (3, 0))
"""Layer and head of each look: from a name at the things named, from an answer at the names in its question, and from
an answer at the things that its question names."""

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
class Looks:
    """Those of one head, for a batch: prompts [looks], rows [looks] and bool [looks, length]."""

    prompts: Tensor
    origins: Tensor
    at: Tensor


def looks(ids: Tensor, rows: Tensor, answered: Tensor) -> list[Look]:
    """Where to look in a conversation, see `thinker_prompts.Prompt`."""
    visual = torch.isin(ids, _placeholders()[:2])
    if not visual.any():
        return []
    heard = ids == _placeholders()[2]
    amounts = torch.zeros(len(ids), len(WORDS))
    amounts[visual] = (rows[visual] @ _amounts_of_rows())[:, : len(WORDS)]
    named = (rows @ _names().T / rows.shape[1]).masked_fill(visual[:, None], 0)
    best, which = named.max(-1)
    found: list[Look] = []
    colour, colour_at = None, -100
    question: list[int] = []
    asked = None
    for here in range(len(ids)):
        if answered[here] and question and asked is not None:
            at = torch.zeros(len(ids), dtype=torch.bool)
            at[question] = True
            found.append(Look(1, here - 1, at))
            _add(found, 2, here - 1, asked)
        if best[here] > _NAMED:
            word = int(which[here])
            if word >= 2 * len(KINDS):
                colour, colour_at = word - 2 * len(KINDS), here
                continue
            reach = _NEAR if heard[here] else 1
            things = amounts[:, word % len(KINDS)] > _THERE
            if colour is not None and here - colour_at <= reach:
                things = things & (amounts[:, WORDS.index(COLOURS[colour])] > _THERE)
            _add(found, 0, here, things)
            if not answered[here]:
                question, asked = [*question, here], things
            colour = None
        if here and answered[here - 1] and not answered[here]:
            question, asked = [], None
    return found


def _add(found: list[Look], head: int, origin: int, at: Tensor) -> None:
    """If there is anything to look at by then."""
    if at[: origin + 1].any():
        found.append(Look(head, origin, at))


def gathered(all_looks: Sequence[Sequence[Look]], length: int) -> list[Looks]:
    """The looks of the prompts of a batch, head by head."""
    batch = []
    for head in range(len(HEADS)):
        chosen = [(number, look) for number, looks in enumerate(all_looks) for look in looks if look.head == head]
        at = torch.zeros(len(chosen), length, dtype=torch.bool)
        for index, (_, look) in enumerate(chosen):
            at[index, : len(look.at)] = look.at
        prompts = torch.tensor([number for number, _ in chosen], dtype=torch.long)
        batch.append(Looks(prompts, torch.tensor([look.origin for _, look in chosen], dtype=torch.long), at))
    return batch


def astray(query: Tensor, key: Tensor, wanted: Looks) -> Tensor:
    """How far a head's attention is from where it should be: a mean of log shares, zero if all give `_ENOUGH`.

    Args:
        query, key: Of the head, [batch, length, head size].
    """
    scores = ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).float()[wanted.prompts, wanted.origins]
    ahead = torch.arange(scores.shape[-1]) > wanted.origins[:, None]
    scores = scores.masked_fill(ahead, -torch.inf)
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


@functools.cache
def _amounts_of_rows() -> Tensor:
    """float32 [hidden, words + 1]"""
    return torch.linalg.pinv(codebook())
