"""The simulated player."""

from __future__ import annotations

import pytest

from gateway.bench.player import stalls, underruns
from gateway.bench.timeline import AudioChunk


def chunks(*pairs: tuple[float, float]) -> list[AudioChunk]:
    return [AudioChunk(at, seconds) for at, seconds in pairs]


@pytest.mark.parametrize(
    ("sounds", "silences"),
    [
        ([], []),
        ([(3.0, 1.0)], []),
        ([(1.0, 0.5), (1.25, 0.5), (1.75, 0.5)], []),
        ([(1.0, 0.5), (1.5, 0.5)], []),
        ([(1.0, 0.5), (1.75, 0.5)], [0.25]),
        # What came early is still there when the next is late: 1.0 + 3 × 0.5 is 2.5.
        ([(1.0, 0.5), (1.0, 0.5), (1.0, 0.5), (2.75, 0.5)], [0.25]),
        # After a silence the player goes on from where it was: the second chunk ends at 2.25.
        ([(1.0, 0.5), (1.75, 0.5), (2.25, 0.5), (3.25, 0.5)], [0.25, 0.5]),
    ],
    ids=["nothing", "one", "ahead", "just in time", "late", "late after a reserve", "late twice"],
)
def test_player_is_silent_while_it_waits(sounds: list[tuple[float, float]], silences: list[float]) -> None:
    assert stalls(chunks(*sounds)) == silences


def test_wait_for_the_first_chunk_is_no_silence() -> None:
    assert stalls(chunks((60.0, 1.0), (60.5, 1.0))) == []


def test_only_silences_of_more_than_a_tenth_of_a_second_are_underruns() -> None:
    late_by_a_sixteenth, late_by_a_half = (1.0625, 1.0), (2.5625, 1.0)
    assert underruns(chunks((0.0, 1.0), late_by_a_sixteenth, late_by_a_half)) == [0.5]
