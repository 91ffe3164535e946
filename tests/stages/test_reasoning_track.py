"""The beginning and the end of reasoning are recognised by token ids."""

from __future__ import annotations

import pytest

from stages.messages import ReasoningForm
from stages.reasoning_track import ReasoningTrack

BEGIN, END = 90, 91


def form(*, begun: bool = False) -> ReasoningForm:
    return ReasoningForm("<think>", "</think>", BEGIN, END, begun=begun)


@pytest.mark.parametrize(
    ("ids", "begun", "tokens", "thoughts", "is_open"),
    [
        ([], False, 0, 0, False),
        ([BEGIN], False, 1, 0, True),
        ([BEGIN, 1, 2], False, 3, 2, True),
        ([BEGIN, 1, 2, END], False, 4, 2, False),
        ([BEGIN, 1, END, 3, END, BEGIN, 4], False, 3, 1, False),
        ([1, BEGIN, 2, END], False, 0, 0, False),
        ([END, BEGIN], False, 0, 0, False),
        ([], True, 0, 0, True),
        ([1, 2], True, 2, 2, True),
        ([1, END, 2], True, 2, 1, False),
        ([END, BEGIN], True, 1, 0, False),
    ],
)
def test_reasoning_is_the_beginning_up_to_the_first_closing_token(
    ids: list[int], begun: bool, tokens: int, thoughts: int, is_open: bool
) -> None:
    track = ReasoningTrack(form(begun=begun))
    for length in range(len(ids) + 1):
        track.follow(ids[:length])
    assert (track.tokens, track.thoughts, track.open) == (tokens, thoughts, is_open)
    if not is_open:
        assert track.answer_start == tokens


def test_only_the_first_token_may_begin_reasoning() -> None:
    assert ReasoningTrack(form()).pending
    assert not ReasoningTrack(form(begun=True)).pending
    track = ReasoningTrack(form())
    track.read(1)
    assert not track.pending
