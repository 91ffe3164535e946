"""`judge_simulation.py` simulates the deployments that it measures, and finds predictions that are wrong."""

from __future__ import annotations

import judge_simulation as judge
import pytest
from judge_simulation import Deployment, Figures, Measured

OPTIONS = ["--model-path", "unused", "--seeds", "1", "--tokens", "12", "--audio-frames", "24"]
FIGURES = Figures(rate=2.0, ttft=0.1, ttfa=0.5, e2e=3.0)


def test_each_layout_is_simulated_on_the_gpus_that_its_configuration_names() -> None:
    split = judge.scenario(Deployment("split", 2), 1.0, None)
    gpus = {(site.replica, stage.name): stage.gpus for site in split.workers for stage in site.stages}
    assert gpus[0, "thinker"] == (0,)
    for replica in (0, 1):
        assert {gpus[replica, name] for name in judge.SPEAKING} == {(1 + replica,)}
    colocated = judge.scenario(Deployment("colocated", 1), 1.0, None)
    [worker] = [site for site in colocated.workers if len(site.stages) > 1]
    assert set(judge.PACED) <= {stage.name for stage in worker.stages}


def test_slow_steps_and_small_batches_are_simulated() -> None:
    options = judge.parser().parse_args([*OPTIONS, "--slow", "2"])
    twice = judge.parser().parse_args([*OPTIONS, "--slow", "4"])
    single = judge.parser().parse_args([*OPTIONS, "--slow", "2", "--batch", "1"])
    figures = [judge.predict(Deployment("split", 1), 4, 50, each) for each in (options, twice, single)]
    assert figures[1].rate == pytest.approx(figures[0].rate / 2, rel=0.2)
    assert figures[2].rate < figures[0].rate


@pytest.mark.parametrize(
    ("predicted", "good"),
    [
        (Figures(2.0, 0.1, 0.5, 3.0), True),
        (Figures(2.2, 0.1, 0.55, 2.7), True),
        (Figures(2.4, 0.1, 0.5, 3.0), False),
        (Figures(2.0, 0.1, 0.4, 3.0), False),
        (Figures(2.0, 0.1, 0.5, 4.0), False),
        (Figures(2.0, 0.5, 0.5, 3.0), True),  # the time to the first text is shown, but not judged
    ],
)
def test_a_prediction_agrees_within_the_tolerance(predicted: Figures, good: bool) -> None:
    assert judge.agrees(predicted, FIGURES, 0.15) is good


def test_a_row_has_prediction_measurement_and_ratio() -> None:
    row = judge.row(Deployment("split", 2), 8, Figures(1.0, 0.1, 0.5, 3.0), Measured(FIGURES, 0.02, 60.0))
    assert row.startswith("| split | 2 | 8 | 1.000 / 2.000 = 0.50 | 0.100 / 0.100 = 1.00 |")
    assert row.endswith("| 2.0% |")
