"""Which silence is work, and which is death."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator

import pytest

from omni_pipeline.supervision.hang_detection import Bounds, Sample, Vitals, is_stopped, take_sample

BOUNDS = Bounds(silent_seconds=10, step_seconds=60)


def sleeping(cpu_seconds: float = 5.0) -> Iterator[Sample]:
    while True:
        yield Sample("S", cpu_seconds)


def computing(share: float = 0.5, state: str = "R") -> Iterator[Sample]:
    seconds = 5.0
    while True:
        yield Sample(state, seconds)
        seconds += share


def looks(samples: Iterable[Sample | None], *, loaded: bool = True, elapsed: float = 1.0) -> tuple[int, str | None]:
    """After how many looks something was wrong, and what; at most 200."""
    given = iter(samples)
    vitals = Vitals(1, BOUNDS, lambda pid: next(given))
    if loaded:
        vitals.beat()
    for count in range(1, 201):
        verdict = vitals.look(elapsed)
        if verdict is not None:
            return count, verdict
    return 200, None


def test_process_that_neither_beats_nor_computes_is_found_before_the_bound() -> None:
    count, verdict = looks(sleeping())
    assert 9 <= count <= 10
    assert verdict is not None
    assert verdict.startswith("gave no sign of life for")


def test_process_that_computes_is_at_work_until_its_step_takes_too_long() -> None:
    count, verdict = looks(computing())
    assert 60 <= count <= 62
    assert verdict is not None
    assert "single step" in verdict


def test_process_that_waits_for_a_disk_is_at_work() -> None:
    count, _ = looks(computing(share=0.0, state="D"))
    assert count > 50


def test_work_of_its_io_thread_alone_is_none() -> None:
    count, verdict = looks(computing(share=0.005))
    assert count <= 10
    assert verdict is not None


def test_process_that_goes_to_sleep_in_its_step_is_found() -> None:
    busy = computing()
    samples = [next(busy) for _ in range(20)]
    count, verdict = looks([*samples, *[samples[-1]] * 100])
    assert 29 <= count <= 32
    assert verdict is not None


def test_beats_keep_it_alive() -> None:
    vitals = Vitals(1, BOUNDS, lambda pid: Sample("S", 5.0))
    for _ in range(100):
        assert [vitals.look(1.0) for _ in range(5)] == [None] * 5
        vitals.beat()


def test_process_that_loads_may_sleep_longer() -> None:
    count, verdict = looks(sleeping(), loaded=False)
    assert 58 <= count <= 61
    assert verdict is not None


def test_process_that_loads_and_computes_has_all_the_time_it_needs() -> None:
    assert looks(computing(), loaded=False) == (200, None)


def test_process_that_is_stopped_while_it_loads_is_found_like_any_other() -> None:
    count, verdict = looks(computing(share=0.0, state="T"), loaded=False)
    assert count <= 10
    assert verdict is not None


def test_process_that_has_ended_is_no_matter_of_silence() -> None:
    vitals = Vitals(1, BOUNDS, lambda pid: None)
    assert [vitals.look(1.0) for _ in range(100)] == [None] * 100


def test_time_in_which_nobody_looked_counts_little() -> None:
    vitals = Vitals(1, BOUNDS, lambda pid: Sample("S", 5.0))
    vitals.beat()
    assert vitals.look(3600.0) is None  # a suspended machine
    assert vitals.look(1.0) is None


def test_sample_counts_what_runs_below() -> None:
    """A parent that sleeps while its child computes."""
    with subprocess.Popen(["sh", "-c", "(echo; while :; do :; done); true"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            first = take_sample(process.pid)
            assert first is not None
            while (sample := take_sample(process.pid)) is not None and sample.cpu_seconds < first.cpu_seconds + 0.05:
                pass
            assert sample is not None
            assert sample.state == "S"
        finally:
            for pid in (*children(process.pid), process.pid):
                os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_sample_of_a_process_that_is_gone_is_none() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert take_sample(process.pid) is None


@pytest.mark.parametrize("stopped", [True, False])
def test_stopped_process_is_recognised(stopped: bool) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            if stopped:
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            assert is_stopped(process.pid) == stopped
        finally:
            process.kill()
