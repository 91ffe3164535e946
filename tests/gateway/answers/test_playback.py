"""What a listener would have heard, for pieces of sound that come at given times."""

from __future__ import annotations

import pytest

from gateway.answers.playback import Player


@pytest.mark.parametrize(
    ("pieces", "underruns", "silence"),
    [
        ([], 0, 0),
        ([(5.0, 1.0)], 0, 0),
        ([(5.0, 1.0), (6.0, 1.0)], 0, 0),
        ([(5.0, 1.0), (5.1, 1.0), (5.2, 1.0), (7.9, 1.0)], 0, 0),
        ([(5.0, 1.0), (6.5, 1.0)], 1, 0.5),
        ([(5.0, 1.0), (6.5, 1.0), (7.0, 1.0), (9.0, 1.0)], 2, 1.0),
        ([(5.0, 1.0), (6.5, 1.0), (7.5, 1.0)], 1, 0.5),
    ],
    ids=["nothing", "one piece", "just in time", "ahead", "late once", "late twice", "late moves the rest"],
)
def test_gaps_between_pieces(pieces, underruns, silence):
    player = Player()
    for now, seconds in pieces:
        player.feed(now, seconds)
    assert (player.underruns, player.silence) == (underruns, pytest.approx(silence))
    assert player.seconds == sum(seconds for _, seconds in pieces)
