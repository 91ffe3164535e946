"""Tests the silences that a listener would have heard, for pieces of sound that arrive at given times."""

from __future__ import annotations

import pytest

from gateway.playback import Player

Pieces = list[tuple[float, float]]


def played(pieces: Pieces) -> tuple[Player, list[float]]:
    """A player that has got all pieces, and the silences that the player has reported."""
    player = Player()
    silences = [player.feed(at, seconds) for at, seconds in pieces]
    return player, [silence for silence in silences if silence]


@pytest.mark.parametrize(
    ("pieces", "silences"),
    [
        ([], []),
        ([(5.0, 1.0)], []),
        ([(5.0, 1.0), (5.5, 1.0), (5.75, 1.0), (7.5, 1.0)], []),
        ([(1.0, 0.5), (1.25, 0.5), (1.75, 0.5)], []),
        ([(1.0, 0.5), (1.5, 0.5)], []),
        ([(1.0, 0.5), (1.75, 0.5)], [0.25]),
        # Early sound is still playing when the next piece is late: it plays until 1.0 + 3 × 0.5 = 2.5.
        ([(1.0, 0.5), (1.0, 0.5), (1.0, 0.5), (2.75, 0.5)], [0.25]),
        # After a silence, the next piece plays on arrival: the second piece ends at 2.25.
        ([(1.0, 0.5), (1.75, 0.5), (2.25, 0.5), (3.25, 0.5)], [0.25, 0.5]),
        ([(60.0, 1.0), (60.5, 1.0)], []),
    ],
    ids=[
        "nothing", "one piece", "far ahead", "ahead", "just in time", "late", "late after a reserve", "late twice",
        "the wait for the first piece",
    ],
)  # fmt: skip
def test_player_is_silent_while_it_waits(pieces: Pieces, silences: list[float]) -> None:
    player, heard = played(pieces)
    assert (heard, player.underruns) == (silences, silences)
    assert player.seconds == sum(seconds for _, seconds in pieces)


def test_only_silences_of_more_than_a_tenth_of_a_second_are_underruns() -> None:
    late_by_a_sixteenth, late_by_a_half = (1.0625, 1.0), (2.5625, 1.0)
    player, silences = played([(0.0, 1.0), late_by_a_sixteenth, late_by_a_half])
    assert (silences, player.underruns) == ([0.0625, 0.5], [0.5])
