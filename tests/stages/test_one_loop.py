"""In the colocated layout, thinker and talker share a loop and a GPU. Listeners decide the order of their steps."""

from __future__ import annotations

import pytest

from tests.stages.one_loop import OneLoop


def run(streams: int, *, answers: int = 8, **options: bool | int) -> OneLoop:
    loop = OneLoop(streams, answers=answers, **{"just_in_time": True, **options})  # type: ignore[arg-type]
    loop.run()
    assert len(loop.done) == answers * streams
    return loop


@pytest.mark.parametrize("streams", [4, 8, 12, 13])
def test_answers_play_without_a_gap_up_to_most_of_the_throughput(streams: int) -> None:
    """With more than about 17 streams, the GPU makes less sound than the streams need, so no order can avoid gaps."""
    loop = run(streams)
    assert loop.gapless >= 0.99
    assert loop.sound > 1.05 * streams


def test_steps_in_turn_stutter_long_before() -> None:
    assert run(12, just_in_time=False).gapless < 0.5


@pytest.mark.parametrize(("streams", "gapless"), [(8, 0.98), (9, 0.98), (11, 0.96)])
def test_listeners_go_before_text_answers_which_get_their_share(streams: int, gapless: float) -> None:
    """With 11 streams and the texts, the GPU is nearly saturated."""
    in_turn, passed = run(streams, answers=30, texts=24, passes=0), run(streams, answers=30, texts=24)
    assert passed.gapless >= gapless
    assert passed.sound > 1.01 * in_turn.sound
    assert passed.written / passed.now > 0.9 * in_turn.written / in_turn.now


def test_the_thinker_is_passed_over_only_for_listeners() -> None:
    in_turn, passed = run(4, texts=24, just_in_time=False, passes=0), run(4, texts=24, just_in_time=False)
    assert passed.now == in_turn.now
