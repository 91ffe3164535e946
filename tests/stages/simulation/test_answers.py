"""The simulated stages of Qwen3-Omni make the answers that the real stages make. Each step takes the time that `LAWS`
gives for this step.
"""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from gateway.playback import AUDIBLE_SECONDS
from omni_pipeline.simulation.capacity import find_capacity
from omni_pipeline.simulation.load import Load, RequestShape
from omni_pipeline.simulation.network import Costs
from omni_pipeline.simulation.results import AUDIBLE_SECONDS as SIMULATED
from omni_pipeline.simulation.run import Simulation, simulate
from stages.code2wav.chunk_order import ListenerOrder
from stages.playback import FRAME_SECONDS
from stages.simulation.laws import PUBLISHED
from stages.simulation.model import QWEN3_OMNI
from stages.topology import QWEN3_OMNI as GRAPH
from tests.stages.simulation.deployments import own_gpus, replicas, scenario

LAWS = PUBLISHED.laws
SHAPE = RequestShape(prompt_tokens=100, answer_tokens=24, audio_frames=60)
TWO = "2xH100-80GB"


def alone(requests: int = 1) -> Load:
    return Load(streams=1, requests=requests, continues=False)


def test_the_first_text_takes_one_prefill_and_the_first_sound_three_more_steps() -> None:
    found = simulate(scenario("4xH100-80GB", own_gpus()), alone(), SHAPE)
    text = LAWS["thinker"].seconds(1, 100)
    speech = LAWS["talker_ar"].seconds(1, 109) + LAWS["code_predictor"].seconds(1) + LAWS["code2wav"].seconds(1)
    assert found.ttft.p50 == pytest.approx(text)
    assert found.ttfa.p50 == pytest.approx(text + speech)


def test_one_speaker_makes_one_frame_after_the_other() -> None:
    found = simulate(scenario("4xH100-80GB", own_gpus()), alone(), SHAPE)
    begin = LAWS["thinker"].seconds(1, 100) + LAWS["talker_ar"].seconds(1, 109)
    frames = 60 * LAWS["code_predictor"].seconds(1) + 60 * LAWS["talker_ar"].seconds(1)
    assert found.e2e.p50 is not None
    # the last chunk is decoded after the last frame, or after the talker's last step
    assert begin + frames <= found.e2e.p50 <= begin + frames + LAWS["code2wav"].seconds(8)


def test_a_text_answer_takes_a_step_for_each_token() -> None:
    shape = msgspec.structs.replace(SHAPE, audio_frames=0)
    found = simulate(scenario(TWO), alone(), shape)
    assert found.e2e.p50 == pytest.approx(LAWS["thinker"].seconds(1, 100) + 23 * LAWS["thinker"].seconds(1))
    assert found.ttfa.p50 is None
    assert found.gapless is None
    assert all(not use.busy for use in found.stages if use.name in ("talker_ar", "code_predictor", "code2wav"))


def test_media_pass_through_the_image_encoder() -> None:
    shape = RequestShape(prompt_tokens=1100, answer_tokens=1, audio_frames=0, media_tokens=1000)
    found = simulate(scenario(TWO), alone(), shape)
    expected = LAWS["image_encoder"].seconds(1, 1000) + LAWS["thinker"].seconds(1, 1100)
    assert found.ttft.p50 == pytest.approx(expected)


def test_a_long_prompt_is_computed_in_several_steps() -> None:
    shape = RequestShape(prompt_tokens=20_000, answer_tokens=1, audio_frames=0)
    found = simulate(scenario(TWO), alone(), shape)
    thinker = LAWS["thinker"]
    parts = (8192, 8192, 20_000 - 2 * 8192)
    assert found.ttft.p50 == pytest.approx(sum(thinker.seconds(1, part) for part in parts))


@pytest.mark.parametrize("limit", [{"max_running_requests": 1}, {"max_total_tokens": 200}])
def test_an_answer_waits_for_a_place_and_for_memory(limit: dict[str, int]) -> None:
    shape = msgspec.structs.replace(SHAPE, audio_frames=0)
    load = Load(streams=4, requests=4, continues=False)
    found = simulate(scenario(TWO, {"stages": {"thinker": {"options": limit}}}), load, shape)
    one = LAWS["thinker"].seconds(1, 100) + 23 * LAWS["thinker"].seconds(1)
    assert found.seconds == pytest.approx(4 * one)


def random_settings(dice: random.Random) -> tuple[str, dict[str, Any]]:
    """GPUs and settings of some deployment."""
    kind = dice.choice(["split", "colocated", "replicas", "whole"])
    need = dice.random() < 0.7
    options = {
        "thinker": {"options": {"max_running_requests": dice.choice([1, 3, 64])}},
        "talker_ar": {"options": {"max_running_requests": dice.choice([1, 4, 64]), "just_in_time": need}},
        "code_predictor": {"options": {"max_batch": dice.choice([1, 4, 32])}},
        "code2wav": {"options": {"max_streams": dice.choice([1, 4, 32]), "just_in_time": need}},
    }
    match kind:
        case "colocated":
            return "1xH100-80GB", {"colocate": True, "stages": options}
        case "replicas":
            number = dice.randint(1, 4)
            return f"{1 + number}xH100-80GB", {**replicas(number), "stages": options}
        case "whole":
            groups = {"all": {"replicas": 2, "gpus": [[0], [1]]}}
            return TWO, {"groups": groups, "colocate": dice.random() < 0.5, "stages": options}
    return dice.choice([TWO, "4xH100-80GB"]), {"stages": options}


@pytest.mark.parametrize("seed", range(20))
def test_every_request_ends_with_all_its_text_and_sound(seed: int) -> None:
    dice = random.Random(seed)
    gpus, settings = random_settings(dice)
    shape = RequestShape(dice.choice([5, 300]), dice.randint(1, 40), dice.randint(1, 30), dice.choice([0, 4]))
    load = Load(streams=dice.randint(1, 12), requests=dice.randint(1, 24), continues=False, seed=seed)
    simulation = Simulation(scenario(gpus, settings, costs=Costs()), load, shape)
    found = simulation.run()
    assert (found.answers, found.unanswered) == (load.requests, 0)
    for answer in simulation.answers.values():
        assert answer.tokens == shape.answer_tokens
        assert answer.sound == pytest.approx(shape.audio_frames * FRAME_SECONDS)
    assert all(0 <= use.busy <= 1 + 1e-9 for use in (*found.stages, *found.gpus))


def test_replicas_of_a_saturated_talker_multiply_its_throughput() -> None:
    one_at_a_time = {"stages": {"talker_ar": {"options": {"max_running_requests": 1}}}}
    load = Load(streams=8, requests=32, continues=False)
    rates = [
        simulate(scenario("5xH100-80GB", {**replicas(number), **one_at_a_time}), load, SHAPE).answers_per_second
        for number in (1, 2, 4)
    ]
    assert rates[1] / rates[0] == pytest.approx(2.0, rel=0.05)
    assert rates[2] / rates[0] == pytest.approx(4.0, rel=0.1)


def test_the_measured_throughput_of_replicas_is_predicted() -> None:
    """The measured values are in docs/scaling.md. `scripts/measure_replicas.py` measured them as the throughput of a
    real server. The steps of the server took as long as the steps of this simulation.
    """
    measured = {(1, 1): 0.575, (2, 1): 0.574, (4, 1): 0.574, (1, 8): 0.582, (2, 8): 1.159, (4, 8): 2.312}
    slow = {name: law.scaled(1 if name == "thinker" else 6) for name, law in LAWS.items()}
    one_at_a_time = {"stages": {"talker_ar": {"options": {"max_running_requests": 1}}}}
    for (number, streams), expected in measured.items():
        made = scenario("5xH100-80GB", {**replicas(number), **one_at_a_time}, laws=slow, costs=Costs())
        load = Load(streams=streams, requests=8 * streams, continues=False)
        found = simulate(made, load, RequestShape(100, 3, 12))
        assert found.answers / found.seconds == pytest.approx(expected, rel=0.04), (number, streams)


def test_with_the_order_of_need_more_answers_play_without_a_gap() -> None:
    shares = []
    for just_in_time in (False, True):
        order = {"options": {"just_in_time": just_in_time}}
        made = scenario("1xH100-80GB", {"colocate": True, "stages": {"talker_ar": order, "code2wav": order}})
        shares.append(simulate(made, Load(streams=13, requests=50, spread=4.8), SHAPE).gapless)
    arrival, need = shares
    assert arrival is not None
    assert need is not None
    assert arrival < 0.3
    assert need > 0.8


def test_the_gapless_capacity_is_the_largest_number_of_streams_that_play() -> None:
    made = scenario("1xH100-80GB", {"colocate": True}, laws={name: law.scaled(1.5) for name, law in LAWS.items()})
    found = find_capacity(made, SHAPE, frame_seconds=FRAME_SECONDS, most=32, seed=0)
    assert found.fails_at == found.streams + 1
    spread = SHAPE.audio_frames * FRAME_SECONDS
    plays = simulate(made, Load(streams=found.streams, requests=50, spread=spread), SHAPE)
    fails = simulate(made, Load(streams=found.fails_at, requests=50, spread=spread), SHAPE)
    assert plays.gapless is not None
    assert fails.gapless is not None
    assert plays.gapless >= 0.98
    assert fails.gapless < 0.99
    assert find_capacity(made, SHAPE, frame_seconds=FRAME_SECONDS, most=1, seed=0).fails_at is None


def test_the_graph_names_a_model_with_all_its_stages() -> None:
    assert GRAPH.simulation == "stages.simulation.model:QWEN3_OMNI"
    assert QWEN3_OMNI.stages.keys() == set(GRAPH.stage_names)
    assert ListenerOrder.__module__ == "stages.code2wav.chunk_order"


def test_a_gap_is_what_the_gateway_counts_as_a_gap() -> None:
    assert SIMULATED == AUDIBLE_SECONDS


def test_a_simulation_needs_no_torch() -> None:
    code = "import sys, stages.simulation.model; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
