"""The simulation gives the results that queueing theory gives."""

from __future__ import annotations

import random

import msgspec
import pytest

from omni_pipeline.contract.simulation import StepLaw
from omni_pipeline.simulation.load import Load, RequestShape
from omni_pipeline.simulation.network import Costs
from omni_pipeline.simulation.results import Prediction
from omni_pipeline.simulation.run import Scenario, Simulation, simulate
from omni_pipeline.simulation.site import SiteStage, SiteWorker
from tests.omni_pipeline.simulation.one_stage import FREE, one_stage

SHAPE = RequestShape(prompt_tokens=10, answer_tokens=100, audio_frames=0)
STEP = StepLaw(step=0.1)


def closed(scenario: Scenario, streams: int, requests: int = 40) -> Prediction:
    return simulate(scenario, Load(streams=streams, requests=requests, continues=False), SHAPE)


def test_one_client_gets_one_answer_for_each_service_time() -> None:
    found = closed(one_stage(STEP), 1)
    assert found.answers_per_second == pytest.approx(10.0)
    assert found.e2e.p50 == pytest.approx(0.1)
    assert found.stages[0].busy == pytest.approx(1.0)


@pytest.mark.parametrize("streams", [2, 5])
def test_a_full_queue_answers_at_the_same_rate_and_each_client_waits_for_all(streams: int) -> None:
    found = closed(one_stage(STEP), streams)
    assert found.answers_per_second == pytest.approx(10.0)
    assert found.e2e.p90 == pytest.approx(0.1 * streams)


def test_regular_costs_are_added_to_each_answer() -> None:
    costs = Costs(gateway=0.01, hop=0.002, message=0.003, latency=1.0)
    found = closed(one_stage(STEP, costs=costs), 1)
    # the request and the answer each make one hop, and the worker handles both messages
    assert found.e2e.p50 == pytest.approx(0.01 + 2 * 0.002 + 2 * 0.003 + 0.1)


def test_the_gateway_handles_one_request_after_the_other() -> None:
    found = closed(one_stage(StepLaw(), costs=Costs(gateway=0.01, hop=0.0, message=0.0)), 4, 4)
    assert found.e2e.p50 == pytest.approx(0.025)
    assert found.seconds == pytest.approx(0.04)


def test_a_batch_takes_the_time_of_its_law() -> None:
    found = closed(one_stage(StepLaw(step=0.1, item=0.02, token=0.001), most=8), 8, 80)
    # the first request arrives alone, so batches of 1 request and batches of 7 requests alternate
    long, short = 0.1 + 7 * 0.02 + 70 * 0.001, 0.1 + 0.02 + 0.01
    assert found.answers_per_second == pytest.approx(8 / (long + short), rel=0.02)
    assert found.stages[0].batch == pytest.approx(4.0, rel=0.1)


def test_two_replicas_double_the_throughput_of_a_saturated_stage() -> None:
    rates = [closed(one_stage(STEP, gpus=range(number)), 8, 80).answers_per_second for number in (1, 2, 4)]
    assert rates == pytest.approx([10.0, 20.0, 40.0])


def test_two_replicas_on_one_gpu_do_not_raise_the_throughput() -> None:
    found = closed(one_stage(STEP, gpus=[0, 0]), 8, 80)
    assert found.answers_per_second == pytest.approx(10.0)
    assert [use.busy for use in found.gpus] == [pytest.approx(1.0)]
    assert [use.busy for use in found.stages] == [pytest.approx(0.5), pytest.approx(0.5)]


def test_an_open_loop_makes_the_stage_as_busy_as_its_load() -> None:
    found = simulate(one_stage(STEP), Load(rate=6.0, seconds=2000.0), SHAPE)
    assert found.stages[0].busy == pytest.approx(0.6, rel=0.03)
    assert found.answers_per_second == pytest.approx(6.0, rel=0.03)
    assert abs(found.backlog) < 0.01
    # With random arrivals and a fixed service time, 60 % of the requests must wait.
    assert found.e2e.p50 is not None
    assert found.e2e.p50 > 0.1


def test_too_many_requests_leave_a_backlog() -> None:
    found = simulate(one_stage(STEP), Load(rate=20.0, seconds=100.0), SHAPE)
    assert found.answers_per_second == pytest.approx(10.0, rel=0.01)
    assert found.backlog == pytest.approx(0.5, rel=0.1)


def test_messages_between_hosts_share_the_bandwidth_of_their_link() -> None:
    costs = Costs(gateway=0.0, hop=0.0, message=0.0, latency=0.05, bandwidth=1000.0)
    there = SiteWorker("work@0", (SiteStage("work", 4),), "many", 0, "b")
    scenario = msgspec.structs.replace(one_stage(StepLaw(), costs=costs), workers=(there,))
    found = closed(scenario, 1, 4)
    # a request has 200 bytes and an answer has 100 bytes
    assert found.e2e.p50 == pytest.approx(0.2 + 0.05 + 0.1 + 0.05)
    assert found.host_bytes_per_second == {"main → b": pytest.approx(500.0), "b → main": pytest.approx(250.0)}
    together = closed(scenario, 4, 4)
    assert together.seconds == pytest.approx(4 * 0.2 + 0.05 + 0.1 + 0.05)


def test_equal_seeds_give_equal_results() -> None:
    load = Load(rate=5.0, seconds=50.0, seed=3)
    found = simulate(one_stage(STEP), load, SHAPE)
    assert simulate(one_stage(STEP), load, SHAPE) == found
    assert simulate(one_stage(STEP), msgspec.structs.replace(load, seed=4), SHAPE) != found


def test_measured_requests_of_a_steady_loop_are_sent_while_all_clients_are_busy() -> None:
    simulation = Simulation(one_stage(STEP), Load(streams=5, requests=20, spread=3.0, seed=1), SHAPE)
    found = simulation.run()
    measured = [simulation.answers[each] for each in simulation.measured]
    assert found.answers == len(measured) == 20
    last_begin = sorted(answer.sent_at for answer in simulation.answers.values())[0:]
    assert min(answer.sent_at for answer in measured) > 0.0
    assert last_begin[0] == 0.0
    assert found.answers_per_second == pytest.approx(10.0, rel=0.1)


def test_requests_before_the_load_are_not_measured() -> None:
    load = Load(streams=4, requests=12, continues=False, before=5)
    simulation = Simulation(one_stage(STEP), load, SHAPE)
    found = simulation.run()
    assert len(simulation.answers) == 5 + 12
    assert simulation.measured == [str(number) for number in range(5, 17)]
    assert found.seconds == pytest.approx(1.2)
    assert found.answers_per_second == pytest.approx(10.0)


@pytest.mark.parametrize("seed", range(12))
def test_every_request_ends_and_nothing_is_busy_for_longer_than_the_time(seed: int) -> None:
    dice = random.Random(seed)
    gpus = [dice.choice([None, 0, 1]) for _ in range(dice.randint(1, 4))]
    law = StepLaw(dice.uniform(0, 0.1), dice.uniform(0, 0.02), dice.uniform(0, 0.001))
    costs = dice.choice([FREE, Costs()])
    scenario = one_stage(law, most=dice.randint(1, 5), gpus=gpus, costs=costs)
    requests = dice.randint(1, 60)
    load = Load(streams=dice.randint(1, 9), requests=requests, continues=False, seed=seed)
    simulation = Simulation(scenario, load, SHAPE)
    found = simulation.run()
    assert found.answers == requests
    assert found.unanswered == 0
    assert all(answer.tokens == 1 for answer in simulation.answers.values())
    assert all(0 <= use.busy <= 1 + 1e-9 for use in (*found.stages, *found.gpus))


def test_an_interpolated_law_goes_through_its_points() -> None:
    law = StepLaw(token=0.5, points=((2, 1.0), (4, 3.0), (5, 3.5)))
    assert [law.seconds(items) for items in (1, 2, 3, 4, 5, 7)] == pytest.approx([1.0, 1.0, 2.0, 3.0, 3.5, 4.5])
    assert law.seconds(2, 4) == pytest.approx(3.0)
    assert law.scaled(2).seconds(3, 1) == pytest.approx(2 * law.seconds(3, 1))
