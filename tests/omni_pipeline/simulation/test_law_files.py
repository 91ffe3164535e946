"""The laws of a simulation (the durations of steps) are read from names, files and metrics pages. Errors name the
mistakes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_pipeline.contract.simulation import StepLaw
from omni_pipeline.errors import StartupError
from omni_pipeline.simulation.law_files import read_laws
from omni_pipeline.simulation.network import Costs
from stages.simulation.model import QWEN3_OMNI

PUBLISHED = QWEN3_OMNI.law_sets["published"].laws


def page(folder: Path, name: str, stage: str, seconds: float, steps: int, items: int, **more: int) -> str:
    """Write a metrics page of a stage with two replicas. Each replica has half of each sum. Returns the page's path."""
    values = {
        "omni_stage_step_seconds_sum": seconds,
        "omni_stage_batch_size_count": steps,
        "omni_stage_batch_size_sum": items,
        **more,
    }
    lines = [
        f'{metric}{{stage="{stage}",replica="{replica}"}} {value / 2}'
        for metric, value in values.items()
        for replica in (0, 1)
    ]
    path = folder / f"{name}.prom"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_the_default_are_the_published_laws() -> None:
    assert read_laws((), QWEN3_OMNI).laws == read_laws(["published"], QWEN3_OMNI).laws == PUBLISHED


def test_a_file_replaces_laws_of_its_base(tmp_path: Path) -> None:
    path = tmp_path / "laws.yaml"
    path.write_text(
        "base: published\n"
        "source: one GPU\n"
        "stages:\n"
        "  thinker: {step: 0.01, item: 0.002, token: 0.00001}\n"
        "  talker_ar: {points: [[1, 0.007], [4, 0.008]]}\n"
        "costs: {gateway: 0.1}\n"
    )
    found = read_laws([str(path)], QWEN3_OMNI)
    assert found.laws["thinker"] == StepLaw(0.01, 0.002, 0.00001)
    assert found.laws["talker_ar"].seconds(4) == 0.008
    assert found.laws["code2wav"] == PUBLISHED["code2wav"]
    assert found.costs == Costs(gateway=0.1)
    assert found.source == "one GPU"


def test_without_a_base_other_stages_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "laws.json"
    path.write_text('{"stages": {"thinker": {"step": 0.01}}}')
    assert read_laws([str(path)], QWEN3_OMNI).laws == {"thinker": StepLaw(0.01)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stages: {thinkr: {step: 1}}", "stages.thinkr: there is no such stage"),
        ("stages: {thinker: {stp: 1}}", "stp"),
        ("stages: {thinker: {step: -1}}", "stages.thinker: no number may be negative"),
        ("stages: {thinker: {step: soon}}", "stages.thinker.step"),
        ("stages: {thinker: {points: [[4, 1], [1, 1]]}}", "sort the points by number of items"),
        ("stages: {thinker: {step: 1, points: [[1, 1]]}}", "'points' cannot be combined with 'step' or 'item'"),
        ("base: guessed\nstages: {}", "there is no set of laws with the name guessed"),
        ("stages: {thinker: {step: 1}, thinker: {step: 2}}", "thinker"),
        ("[", "laws.yaml"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "laws.yaml"
    path.write_text(text)
    with pytest.raises(StartupError) as error:
        read_laws([str(path)], QWEN3_OMNI)
    assert reason in str(error.value)


def test_one_metrics_page_scales_the_published_law(tmp_path: Path) -> None:
    expected = PUBLISHED["talker_ar"].scaled(2).seconds(4)
    found = read_laws([page(tmp_path, "one", "talker_ar", 100 * expected, 100, 400)], QWEN3_OMNI).laws
    assert found["talker_ar"].seconds(4) == pytest.approx(expected)
    assert found["talker_ar"].seconds(8) == pytest.approx(2 * PUBLISHED["talker_ar"].seconds(8))
    assert found["thinker"] == PUBLISHED["thinker"]


def test_several_metrics_pages_give_a_line_from_the_first_page_on(tmp_path: Path) -> None:
    law = StepLaw(0.02, 0.003)
    # the first steps of a server are slow, and they do not count
    sums = [(9.0, 10, 10)]
    for steps, items in ((100, 2), (50, 8), (10, 16)):
        seconds, count, total = sums[-1]
        sums.append((seconds + steps * law.seconds(items), count + steps, total + steps * items))
    pages = [page(tmp_path, str(number), "code_predictor", *each) for number, each in enumerate(sums)]
    found = read_laws(pages, QWEN3_OMNI).laws["code_predictor"]
    assert (found.step, found.item) == (pytest.approx(0.02), pytest.approx(0.003))


def test_points_of_many_steps_have_more_weight(tmp_path: Path) -> None:
    pages = [
        page(tmp_path, "a", "code_predictor", 0.0, 0, 0),
        page(tmp_path, "b", "code_predictor", 1.0, 100, 100),  # 10 ms for 1 request
        page(tmp_path, "c", "code_predictor", 3.0, 200, 500),  # 20 ms for 4 requests
        page(tmp_path, "d", "code_predictor", 3.9, 201, 508),  # a single step of 900 ms for 8 requests
    ]
    found = read_laws(pages, QWEN3_OMNI).laws["code_predictor"]
    assert found.seconds(1) == pytest.approx(0.005, abs=0.01)
    assert found.seconds(4) == pytest.approx(0.035, abs=0.02)


def test_the_time_of_prompts_is_not_the_time_of_steps(tmp_path: Path) -> None:
    law = PUBLISHED["thinker"]
    more = {"omni_stage_prompt_tokens_total": 9000, "omni_stage_prompt_tokens_cached_total": 1000}
    seconds = 100 * law.seconds(4) + 8000 * law.token
    found = read_laws([page(tmp_path, "one", "thinker", seconds, 100, 400, **more)], QWEN3_OMNI).laws["thinker"]
    assert found.seconds(4) == pytest.approx(law.seconds(4))


def test_the_items_of_the_vocoder_are_frames(tmp_path: Path) -> None:
    law = PUBLISHED["code2wav"]
    text = page(tmp_path, "one", "code2wav", 10 * law.seconds(16), 10, 20, omni_stage_frames_total=160)
    assert read_laws([text], QWEN3_OMNI).laws["code2wav"].seconds(16) == pytest.approx(law.seconds(16))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["publishd"], "there is no file and no set of laws with this name"),
        (["published", "published"], "can be given several times only if each value is a metrics page"),
        (["http://127.0.0.1:9/metrics"], "cannot read the metrics"),
        (["nowhere.prom"], "cannot read the metrics"),
    ],
)
def test_an_unknown_source_is_named(names: list[str], reason: str) -> None:
    with pytest.raises(StartupError) as error:
        read_laws(names, QWEN3_OMNI)
    assert reason in str(error.value)


def test_a_server_without_steps_has_no_laws(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="the metrics contain no steps"):
        read_laws([page(tmp_path, "new", "thinker", 0, 0, 0)], QWEN3_OMNI)
