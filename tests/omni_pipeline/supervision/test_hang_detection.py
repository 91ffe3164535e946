"""A silent worker counts as hung if it does not compute. A silent worker that computes does not count as hung."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator

import pytest

from omni_pipeline.os_process import usage
from omni_pipeline.supervision.hang_detection import Bounds, Vitals, is_stopped, take_sample
from omni_pipeline.wire.host_messages import Sample

BOUNDS = Bounds(silent_seconds=10, step_seconds=60, gpu_wait_seconds=30)


def sleeping(cpu_seconds: float = 5.0) -> Iterator[Sample]:
    while True:
        yield Sample("S", cpu_seconds)


def computing(share: float = 0.5, state: str = "R") -> Iterator[Sample]:
    seconds = 5.0
    while True:
        yield Sample(state, seconds)
        seconds += share


def looks(
    samples: Iterable[Sample | None],
    *,
    loaded: bool = True,
    elapsed: float = 1.0,
    on_gpu: bool = False,
    pulses: bool = False,
    others_compile: bool = False,
) -> tuple[int, str | None]:
    """Call `Vitals.look` until it gives a verdict, at most 200 times. Returns the number of calls, and the verdict. The
    verdict is None if no call gave a verdict.
    """
    given = iter(samples)
    vitals = Vitals(1, BOUNDS, lambda pid, ranks: next(given), on_gpu=on_gpu)
    if loaded:
        vitals.beat()
    for count in range(1, 201):
        if pulses:
            vitals.pulse()
        verdict = vitals.look(elapsed, others_compile=others_compile)
        if verdict is not None:
            return count, verdict
    return 200, None


def test_process_that_neither_beats_nor_computes_is_found_before_the_bound() -> None:
    count, verdict = looks(sleeping())
    assert 9 <= count <= 10
    assert verdict is not None
    assert verdict.startswith("was inactive for")


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
    vitals = Vitals(1, BOUNDS, lambda pid, ranks: Sample("S", 5.0))
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
    vitals = Vitals(1, BOUNDS, lambda pid, ranks: None)
    assert [vitals.look(1.0) for _ in range(100)] == [None] * 100


def test_time_in_which_nobody_looked_counts_little() -> None:
    vitals = Vitals(1, BOUNDS, lambda pid, ranks: Sample("S", 5.0))
    vitals.beat()
    assert vitals.look(3600.0) is None  # the machine was suspended
    assert vitals.look(1.0) is None


# --- on a GPU ---


def compiling() -> Iterator[Sample]:
    """Samples of a process that sleeps while its child, a compiler, computes."""
    return (Sample("S", second, helper_seconds=second) for second in map(float, range(1000)))


def allocating(faults: int) -> Iterator[Sample]:
    """Samples of a process that computes and allocates memory."""
    return (Sample("R", float(second), faults=faults * second) for second in range(1000))


def test_process_that_spins_for_its_gpu_is_found_long_before_its_step_is_over() -> None:
    count, verdict = looks(computing(1.0), on_gpu=True)
    assert 29 <= count <= 31
    assert verdict == "was busy but made no progress for 30 s (its GPU may hang)"


def test_process_that_gets_on_may_be_busy_until_its_step_takes_too_long() -> None:
    count, verdict = looks(computing(1.0), on_gpu=True, pulses=True)
    assert 60 <= count <= 62
    assert "single step" in (verdict or "")


def test_process_on_a_gpu_that_sleeps_is_found_as_soon_as_any_other() -> None:
    count, verdict = looks(sleeping(), on_gpu=True)
    assert count <= 10
    assert "was inactive" in (verdict or "")


@pytest.mark.parametrize("loaded", [True, False])
def test_process_has_all_the_time_that_compilers_under_it_need(loaded: bool) -> None:
    assert looks(compiling(), on_gpu=True, loaded=loaded) == (200, None)


def test_processes_under_one_without_a_gpu_do_not_prolong_its_step() -> None:
    count, verdict = looks(compiling())
    assert 60 <= count <= 62
    assert "single step" in (verdict or "")


@pytest.mark.parametrize("samples", [sleeping, computing])
def test_process_may_wait_for_a_kernel_that_another_worker_compiles(samples: Callable[[], Iterator[Sample]]) -> None:
    assert looks(samples(), on_gpu=True, others_compile=True) == (200, None)


def test_process_that_is_stopped_waits_for_no_kernel() -> None:
    count, _ = looks(computing(share=0.0, state="T"), on_gpu=True, others_compile=True)
    assert count <= 10


def test_process_without_a_gpu_waits_for_no_kernel() -> None:
    count, _ = looks(sleeping(), others_compile=True)
    assert count <= 10


@pytest.mark.parametrize(("faults", "most"), [(1000, 62), (5, 31)])
def test_process_that_takes_memory_as_a_compiler_does_gets_on(faults: int, most: int) -> None:
    count, _ = looks(allocating(faults), on_gpu=True)
    assert most - 2 <= count <= most


def test_process_that_loads_on_a_gpu_may_spin_for_as_long_as_it_may_sleep() -> None:
    count, verdict = looks(computing(1.0), on_gpu=True, loaded=False)
    assert 58 <= count <= 61
    assert "made no progress" in (verdict or "")


def test_compiling_is_told_while_it_goes_on() -> None:
    samples = compiling()
    vitals = Vitals(1, BOUNDS, lambda pid, ranks: next(samples), on_gpu=True)
    vitals.beat()
    for _ in range(5):
        vitals.look(1.0)
    assert vitals.compiles
    vitals.beat()
    assert not vitals.compiles


def test_sample_tells_ranks_from_what_compiles_for_them() -> None:
    """A parent process has two children: the rank and a helper. The rank has another helper as its child. All processes
    except the parent compute.
    """
    busy = "while :; do :; done"
    script = f"sh -c '({busy}) & echo $!; {busy}' & echo $!; ({busy}) & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(3)]
        try:
            (rank,) = [pid for pid in pids if len(children(pid)) == 1]
            helpers = [pid for pid in pids if pid != rank]
            while any(seconds(pid) < 0.05 for pid in pids):
                pass
            sample = take_sample(process.pid, [rank])
            assert sample is not None
            assert sample.helper_seconds >= 0.1 - TICK
            assert sample.cpu_seconds >= sample.helper_seconds + 0.05 - TICK
            assert sample.helper_seconds <= sum(map(seconds, helpers)) + TICK
        finally:
            for pid in (*pids, process.pid):
                os.kill(pid, signal.SIGKILL)


TICK = 1 / os.sysconf("SC_CLK_TCK")


def seconds(pid: int) -> float:
    """CPU time of a process without its children."""
    return usage(pid).cpu_seconds  # type: ignore[union-attr]


def test_sample_counts_what_runs_below() -> None:
    """The sampled process sleeps while its child computes."""
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
