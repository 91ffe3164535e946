"""The waiting time before a worker is restarted depends on how often the worker has ended, and on how long it was ready
before it ended.
"""

from __future__ import annotations

from omni_pipeline.supervision.restart_timing import LOOP, PAUSES, STABLE_SECONDS, Restarts


def test_first_restart_is_at_once_and_later_ones_wait_longer() -> None:
    restarts = Restarts()
    assert [restarts.ended(now) for now in range(len(PAUSES) + 2)] == [*PAUSES, PAUSES[-1], PAUSES[-1]]
    assert PAUSES[0] == 0


def test_stable_time_ends_the_row() -> None:
    restarts = Restarts()
    for now in range(3):
        restarts.ended(now)
    restarts.ready(10)
    assert restarts.ended(10 + STABLE_SECONDS) == PAUSES[0]
    assert restarts.total == 4


def test_short_life_does_not_end_the_row() -> None:
    restarts = Restarts()
    restarts.ended(0)
    restarts.ready(1)
    assert restarts.ended(1 + STABLE_SECONDS / 2) == PAUSES[1]


def test_loop_shows_until_a_process_is_ready() -> None:
    restarts = Restarts()
    for now in range(LOOP):
        assert not restarts.looping
        restarts.ended(now)
    assert restarts.looping
    restarts.ready(LOOP)
    assert not restarts.looping
    restarts.ended(LOOP + 1)
    assert restarts.looping
