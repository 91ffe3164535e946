"""The laws of `step_law` (the durations of steps) agree with their source. Steps last as long as these laws require,
also in a server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measure_step_law
import pytest
from step_law import laws
from step_law.gpu import Gpu
from step_law.graph import STEP_LAW
from step_law.stages import _Pace

from stages.simulation.laws import PREDICTOR_FRAME, REQUESTS, TALKER_STEP, THINKER_STEP, VOCODER_FRAME
from stages.topology import QWEN3_OMNI

PUBLISHED = [
    (laws.THINKER, THINKER_STEP),
    (laws.TALKER, TALKER_STEP),
    (laws.PREDICTOR, PREDICTOR_FRAME),
    (laws.VOCODER, VOCODER_FRAME),
]


@pytest.mark.parametrize(("law", "published"), PUBLISHED)
def test_laws_agree_with_the_published_times(law: laws.Law, published: tuple[float, ...]) -> None:
    found = [1000 * law.seconds(requests) for requests in REQUESTS]
    assert found == pytest.approx(published, abs=0.8)


def test_the_times_of_one_frame_are_the_published_real_time_factor() -> None:
    assert sum(times[0] for _, times in PUBLISHED) / 80 == pytest.approx(0.47, abs=0.005)


def test_prompts_take_longer_than_single_tokens() -> None:
    assert laws.THINKER.seconds(1, 10_000) - laws.THINKER.seconds(1) == pytest.approx(0.165)
    assert laws.PREDICTOR.seconds(1, 10_000) == laws.PREDICTOR.seconds(1)


def test_only_the_stages_that_compute_text_and_speech_differ_from_the_real_graph() -> None:
    assert STEP_LAW.edges == QWEN3_OMNI.edges
    assert STEP_LAW.advice == QWEN3_OMNI.advice
    changed = {paced.name for paced, real in zip(STEP_LAW.stages, QWEN3_OMNI.stages, strict=True) if paced != real}
    assert changed == {"thinker", "talker_ar", "code_predictor", "code2wav"}


class Work:
    """A stage whose steps compute for `seconds`."""

    def __init__(self, context: Any) -> None:
        self.seconds = 0.0
        self.batch = ["a", "b"]

    def step(self) -> Iterable[str]:
        time.sleep(self.seconds)
        yield "sent"

    def stats(self) -> dict[str, float]:
        return {"frames": 1}

    def close(self) -> None: ...


class Paced(_Pace, Work):
    law = laws.Law(0.1, 0.1)
    computes = True

    def _computes(self) -> bool:
        return self.computes


@pytest.fixture
def paced(tmp_path: Path) -> Callable[..., Paced]:
    def make(gpu: int, worker: str = "w", slow: float = 1.0) -> Paced:
        options = SimpleNamespace(gpu=gpu, slow=slow)
        context: Any = SimpleNamespace(scratch=str(tmp_path / f"{worker}.0.scratch"), options=options)
        return Paced(context)

    return make


def seconds_of(act: Callable[[], Any]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def test_a_step_takes_the_time_of_its_law(paced: Callable[..., Paced]) -> None:
    stage = paced(0)
    assert seconds_of(lambda: list(stage.step())) >= 0.3
    assert stage.stats() == {"frames": 1, "late_steps": 0}
    stage.computes = False
    assert seconds_of(lambda: list(stage.step())) < 0.3
    stage.computes, stage.seconds = True, 0.35
    assert list(stage.step()) == ["sent"]
    assert stage.stats()["late_steps"] == 1
    stage.close()


def test_a_slow_law_takes_so_many_times_as_long(paced: Callable[..., Paced]) -> None:
    stage = paced(0, slow=1.5)
    assert seconds_of(lambda: list(stage.step())) >= 0.45


@pytest.mark.parametrize(
    ("stages", "in_turn"),
    [
        (((0, "a"), (0, "b")), True),
        (((0, "a"), (1, "b")), False),
        (((0, "a@0"), (0, "b@0")), True),
        (((0, "a@0"), (0, "a@1")), False),
    ],
)
def test_stages_on_one_gpu_take_turns(
    paced: Callable[..., Paced], stages: tuple[tuple[int, str], ...], in_turn: bool
) -> None:
    stages = [paced(gpu, worker) for gpu, worker in stages]  # type: ignore[assignment]
    threads = [threading.Thread(target=lambda stage=stage: list(stage.step())) for stage in stages]

    def run() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert (seconds_of(run) >= 0.6) == in_turn


def test_a_gpu_is_free_after_an_error(tmp_path: Path) -> None:
    first, second = Gpu(str(tmp_path), "0"), Gpu(str(tmp_path), "0")
    with pytest.raises(RuntimeError), first.held():
        raise RuntimeError
    with second.held():
        pass
    first.close()
    second.close()


def test_a_process_that_waits_for_a_gpu_is_not_overtaken(tmp_path: Path) -> None:
    """As soon as the holder has released the GPU, the holder requests the GPU again. The test repeats this 20 times."""
    holder, waiter = Gpu(str(tmp_path), "0"), Gpu(str(tmp_path), "0")
    turns = []

    def wait_for_turn() -> None:
        with waiter.held():
            turns.append("waiter")

    for _ in range(20):
        with holder.held():
            thread = threading.Thread(target=wait_for_turn)
            thread.start()
            time.sleep(0.02)  # until the waiter has requested the GPU
        with holder.held():
            turns.append("holder")
        thread.join()
    assert turns == ["waiter", "holder"] * 20
    holder.close()
    waiter.close()


def test_short_form_runs_by_the_law(checkpoints: Callable[[str], Path]) -> None:
    """The test uses one stream in the colocated layout. The number of streams that play without a gap depends on the
    machine. But on every machine, a stream gets its sound only as fast as its steps allow.
    """
    few = ["--tokens", "6", "--audio-frames", "15", "--requests", "2", "--max-streams", "1"]
    options = measure_step_law.parser().parse_args(["--model-path", str(checkpoints("nano")), *few])
    found = measure_step_law.measure("colocated", "need", options)
    [alone] = found.capacity["trials"]
    frame = laws.TALKER.seconds(1) + laws.PREDICTOR.seconds(1)
    assert 0 < alone["audio_seconds_per_second"] < 0.08 / frame
    assert 0 <= found.late < 1
    assert found.workers > 0
    assert measure_step_law.row(found).startswith("| colocated | need | ")
