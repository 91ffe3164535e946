"""Rows of two prompts have the same cache id exactly if they have the same input and the same position."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from omni_pipeline.wire.tensor import Tensor
from stages.messages import ASSISTANT_ROWS, Sampling, SpeechOptions, TalkerPrompt
from stages.talker_ar.cache_ids import BLOCK_ROWS, FIRST_CACHE_ID, prompt_cache_ids

SPEECH = SpeechOptions("ethan", Sampling(), Sampling())
USER = [11, 12, 7, 7, 7, 13, 14, 7, 7, 15]  # two media items, with three and two rows
MEDIA = [2, 3, 4, 7, 8]
STATES = [100, 101, 102, 200, 201]


def prompt(
    user: list[int] = USER,
    media: list[int] = MEDIA,
    states: list[int] = STATES,
    opening: tuple[int, ...] = (1, 2, 3),
    positions: torch.Tensor | None = None,
) -> TalkerPrompt:
    return TalkerPrompt(
        ids=Tensor.of(torch.tensor(user)),
        media_rows=Tensor.of(torch.tensor(media)) if media else None,
        media_hidden=Tensor.of(torch.zeros(len(media), 4)) if media else None,
        assistant_ids=list(opening),
        positions=None if positions is None else Tensor.of(positions),
        position_delta=0.0,
        speech=SPEECH,
        media_ids=Tensor.of(torch.tensor(states) + FIRST_CACHE_ID) if media else None,
    )


def ids(*, speaker: int = 50, first: int = 60, **parts: Any) -> list[int]:
    found: list[int] = prompt_cache_ids(prompt(**parts), speaker=speaker, first=first).tolist()
    return found


def lines(rows: int = len(USER) + ASSISTANT_ROWS) -> torch.Tensor:
    """The positions of a prompt without pictures."""
    return torch.arange(rows, dtype=torch.float32).repeat(3, 1)


def differing(left: list[int], right: list[int]) -> list[int]:
    return [index for index, (one, other) in enumerate(zip(left, right, strict=True)) if one != other]


def test_all_rows_of_a_prompt_differ_and_are_beyond_every_vocabulary() -> None:
    found = ids(user=[1] * 10, media=MEDIA, states=[5] * 5, opening=(1, 1, 1), speaker=1, first=1)
    assert len(set(found)) == len(found) == 19
    assert min(found) >= 2**62
    assert max(found) < 2**63


def test_equal_prompts_have_equal_ids() -> None:
    assert ids() == ids()
    assert ids() == ids(positions=lines())


def test_a_row_of_text_depends_on_its_token_and_its_position_only() -> None:
    other = [21, *USER[1:]]
    assert differing(ids(), ids(user=other)) == [0]
    moved = lines()
    moved[:, 9:] += 0.5
    assert differing(ids(), ids(positions=moved)) == [*range(9, 19)]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_positions_count_on_each_axis(axis: int) -> None:
    for row in range(19):
        moved = lines()
        moved[axis, row] += 1
        changed = differing(ids(), ids(positions=moved))
        assert row in changed
        assert set(changed) <= {row, *MEDIA[:3]} or set(changed) <= {row, *MEDIA[3:]}
        moved[axis, row] += 1
        assert row in differing(ids(positions=moved), ids())


def test_rows_of_a_media_item_depend_on_all_states_of_the_item() -> None:
    assert differing(ids(), ids(states=[100, 101, 999, 200, 201])) == MEDIA[:3]
    assert differing(ids(), ids(states=[100, 101, 102, 201, 200])) == MEDIA[3:]
    assert not {*ids(states=[5] * 5)} & {*ids(states=[6] * 5)} & {ids()[row] for row in MEDIA}


def test_a_longer_sound_begins_with_the_same_blocks() -> None:
    def sound(rows: int) -> list[int]:
        return ids(user=[7] * rows, media=[*range(rows)], states=[*range(rows)])

    whole = 3 * BLOCK_ROWS
    longer = sound(whole + 10)
    assert sound(whole)[:whole] == longer[:whole]
    assert differing(sound(whole - 1)[: whole - 1], longer[: whole - 1]) == [*range(2 * BLOCK_ROWS, whole - 1)]


def test_the_token_of_a_media_row_does_not_count() -> None:
    """The token of a media row is only a placeholder. The row's input is a state of the thinker."""
    assert ids() == ids(user=[9 if row in MEDIA else id_ for row, id_ in enumerate(USER)])


def test_a_row_of_text_is_no_row_of_media() -> None:
    states = [7] * 5
    assert differing(ids(states=states), ids(media=[], states=[])) == MEDIA


def test_the_last_rows_depend_on_the_opening_the_speaker_and_the_first_token() -> None:
    assert differing(ids(), ids(opening=(1, 5, 3))) == [11]
    assert differing(ids(), ids(speaker=51)) == [16]
    assert differing(ids(), ids(first=61)) == [18]


def test_a_row_with_a_control_code_is_no_row_of_text() -> None:
    """The shorter prompt ends with six rows that have control codes. The longer prompt has tokens of the user's turn at
    the same six positions.
    """
    short, long = ids(), ids(user=[*USER, 1, 2, 3, 0, 0, 0, 50, 0, 60])
    assert differing(short, long[: len(short)]) == [*range(13, 19)]


def test_a_longer_conversation_begins_with_the_same_ids() -> None:
    longer = [*USER, 30, 7, 7, 31]
    found = ids(user=longer, media=[*MEDIA, 11, 12], states=[*STATES, 300, 301])
    assert found[:10] == ids()[:10]
    assert not {*found[10:]} & {*ids()}
