"""The plan adds up the memory that each device needs, and divides the remaining memory between the caches."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from omni_pipeline.config.schema import Config
from omni_pipeline.contract.graph import Graph, StageSpec
from omni_pipeline.contract.plan import StagePlan, WorkerPlan
from omni_pipeline.contract.stage_memory import Cache, Needs, Request, Situation
from omni_pipeline.contract.stage_options import CacheOptions
from omni_pipeline.deployment.checkpoint import Checkpoint, Stored
from omni_pipeline.deployment.host_facts import HostFacts
from omni_pipeline.deployment.memory_plan import KEPT_FREE, PROCESS_BYTES, RANK_BYTES, Placement, place, refuse, sized
from omni_pipeline.deployment.resolve import Deployment, resolve
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu
from tests.omni_pipeline.echo_stages import Options
from tests.omni_pipeline.sessions import echo_config

GIB = 1024**3


class Settings(CacheOptions, frozen=True, kw_only=True):
    """Options that are similar to those of a language model's stage."""

    dtype: str | None = None


def see(situation: Situation) -> Needs:
    return Needs(activations=3 * GIB, state=GIB // 4, graphs=GIB // 8)


def think(situation: Situation) -> Needs:
    request = situation.request.prompt_tokens + situation.request.answer_tokens
    return Needs(
        activations=GIB,
        requests=64,
        cache=Cache(token_bytes=GIB // 1024 // situation.ranks, beside_bytes=1024, request_tokens=request),
    )


def talk(situation: Situation) -> Needs:
    request = situation.request.prompt_tokens + 4 * situation.request.answer_tokens
    cache = Cache(token_bytes=GIB // 8192, beside_bytes=0, request_tokens=request, most_tokens=1 << 16)
    return Needs(activations=GIB // 2, requests=32, cache=cache)


def sing(situation: Situation) -> Needs:
    return Needs(requests=16)


SPECS = {
    "see": StageSpec("see", "x:x", Options, accelerated=True, weights=("see.",), needs=see),
    "think": StageSpec("think", "x:x", Options, accelerated=True, weights=("think.",), needs=think, parallel=True),
    "talk": StageSpec("talk", "x:x", Options, accelerated=True, weights=("talk.",), needs=talk),
    "sing": StageSpec("sing", "x:x", Options, accelerated=True, weights=("sing.",), needs=sing),
}
CHECKPOINT = Checkpoint(
    "x",
    {"dtype": "bfloat16"},
    {
        "see.a": Stored(GIB // 2, GIB),
        "think.a": Stored(5 * GIB, 10 * GIB),
        "talk.a": Stored(GIB, 2 * GIB),
        "sing.a": Stored(GIB // 8, GIB // 4),
    },
)
REQUEST = Request(prompt_tokens=1000, answer_tokens=100)


def deployment(gpus: list[int], workers: dict[str, dict[str, StagePlan]]) -> Deployment:
    """A deployment in which `workers` run stages of `SPECS`. `gpus` contains the memory of each GPU in GiB."""
    stages = {name: spec for name, spec in SPECS.items() if any(name in stages for stages in workers.values())}
    graph = Graph("x", tuple(stages.values()), (), entry=next(iter(stages)))
    return structs.replace(
        resolve(echo_config()),
        graph=graph,
        workers=tuple(WorkerPlan(name, tuple(stages.values()), threads=1) for name, stages in workers.items()),
        gpus=tuple(Gpu(index, f"Card{size}", size * GIB, str(index)) for index, size in enumerate(gpus)),
    )


def on(name: str, *gpus: int, memory: int | None = None, **options: Any) -> dict[str, StagePlan]:
    """The plan of one stage, by the name of the stage. The stage runs on these GPUs, or on the CPU if `gpus` is
    empty.
    """
    device = "cuda" if gpus else "cpu"
    return {name: StagePlan(name, device, Settings(**options), gpus, max(1, len(gpus)), memory)}


def reckoned(deployment: Deployment, **more: Any) -> Placement:
    return place(deployment, CHECKPOINT, request=REQUEST, **more)


def test_a_stage_takes_weights_state_peak_graphs_and_its_process() -> None:
    [device] = reckoned(deployment([80], {"see": on("see", 0)})).devices
    [holding] = device.holdings
    assert (holding.weights, holding.state, holding.graphs) == (GIB, GIB // 4, GIB // 8)
    assert (holding.activations, holding.process, holding.cache) == (3 * GIB, PROCESS_BYTES, 0)
    assert device.usable == int(80 * GIB * (1 - KEPT_FREE))
    assert device.left == device.usable - holding.total


def test_stages_of_one_worker_take_turns_with_activations_and_share_a_process() -> None:
    together = reckoned(deployment([80], {"all": on("see", 0) | on("sing", 0)}))
    apart = reckoned(deployment([80], {"see": on("see", 0), "sing": on("sing", 0)}))
    saved = apart.devices[0].taken - together.devices[0].taken
    assert saved == PROCESS_BYTES
    thinking = reckoned(deployment([80], {"all": on("see", 0) | on("think", 0)})).devices[0]
    assert sum(holding.activations for holding in thinking.holdings) == 3 * GIB


def test_a_cache_takes_what_is_left() -> None:
    placement = reckoned(deployment([24], {"think": on("think", 0)}))
    [device] = placement.devices
    cache = placement.cache("think")
    assert cache is not None
    assert 0 <= device.left < cache.token_bytes + cache.beside_bytes
    assert cache.tokens == (device.taken - device.holdings[0].fixed) // (cache.token_bytes + cache.beside_bytes)


def test_two_caches_on_one_gpu_hold_as_many_requests_each() -> None:
    placement = reckoned(deployment([24], {"think": on("think", 0), "talk": on("talk", 0)}))
    thinker, talker = placement.caches
    assert thinker.tokens / thinker.request_tokens == pytest.approx(talker.tokens / talker.request_tokens, rel=0.01)
    assert placement.requests == thinker.requests == talker.requests


def test_a_cache_that_can_use_no_more_leaves_the_rest_to_the_other() -> None:
    placement = reckoned(deployment([140], {"think": on("think", 0), "talk": on("talk", 0)}))
    thinker, talker = placement.caches
    assert talker.tokens == 1 << 16
    assert placement.devices[0].left < thinker.token_bytes + thinker.beside_bytes


def test_each_gpu_s_rest_goes_to_the_caches_on_it() -> None:
    placement = reckoned(deployment([80, 24], {"think": on("think", 0), "talk": on("talk", 1)}))
    thinker, talker = placement.caches
    assert thinker.tokens > 60_000
    assert talker.tokens == 1 << 16


def test_ranks_share_weights_and_are_bounded_by_the_fullest_gpu() -> None:
    placement = reckoned(deployment([24, 24], {"think": on("think", 0, 1), "see": on("see", 1)}))
    first, second = placement.devices
    assert first.holdings[0].weights == second.holdings[0].weights == 5 * GIB
    assert first.holdings[0].process == PROCESS_BYTES + RANK_BYTES
    cache = placement.cache("think")
    assert cache is not None
    assert second.left < cache.token_bytes + cache.beside_bytes < first.left


def test_requests_are_bounded_by_stages_without_a_cache_too() -> None:
    placement = reckoned(deployment([140, 24], {"think": on("think", 0), "sing": on("sing", 1)}))
    assert placement.requests == 16


def test_a_number_of_tokens_that_is_given_stands() -> None:
    placement = reckoned(deployment([80], {"think": on("think", 0, max_total_tokens=5000), "talk": on("talk", 0)}))
    assert [cache.tokens for cache in placement.caches] == [5000, 1 << 16]


def test_a_static_fraction_is_of_the_whole_gpu_for_weights_and_all_that_grows_with_tokens() -> None:
    [cache] = reckoned(deployment([80], {"think": on("think", 0, mem_fraction_static=0.5)})).caches
    assert cache.tokens == 30 * GIB // (cache.token_bytes + cache.beside_bytes)


def test_what_an_operator_asks_for_may_take_what_is_else_kept_free() -> None:
    [device] = (placement := reckoned(deployment([80], {"think": on("think", 0, mem_fraction_static=0.97)}))).devices
    assert placement.fits
    assert device.usable < device.taken <= device.limit == 80 * GIB
    assert placement.notes[0].startswith(
        "GPU 0 (Card80) has little free memory: the requested memory leaves only 0.8 GiB of 80.0 GiB for "
    )
    assert not reckoned(deployment([80], {"think": on("think", 0, mem_fraction_static=0.99)})).fits


def test_a_budget_bounds_all_that_a_stage_takes() -> None:
    placement = reckoned(deployment([80], {"think": on("think", 0, memory=30 * GIB)}))
    [holding] = placement.devices[0].holdings
    assert 30 * GIB - 2 * GIB // 1024 < holding.total <= 30 * GIB


def test_a_budget_below_what_a_stage_needs_is_a_problem_with_figures() -> None:
    placement = reckoned(deployment([80], {"think": on("think", 0, memory=11 * GIB)}))
    assert placement.problems[0] == (
        "think may use 11.0 GiB of GPU 0, but needs 11.6 GiB even without its KV cache: raise stages.think.memory."
    )


def test_what_does_not_fit_is_refused_with_the_largest_first() -> None:
    placement = reckoned(deployment([12], {"think": on("think", 0), "talk": on("talk", 0)}))
    with pytest.raises(StartupError) as caught:
        refuse(placement)
    assert str(caught.value) == (
        "Not enough memory: the stages on GPU 0 (Card12) need 14.7 GiB (think 11.6, talk 3.1), "
        "but can use only 11.6 GiB. `sgl-omni plan` with the same flags shows what would fit."
    )


def test_what_others_have_taken_cannot_be_used() -> None:
    [device] = reckoned(deployment([24], {"think": on("think", 0)}), used={0: 8 * GIB}).devices
    assert device.usable == 16 * GIB
    assert device.left >= 0
    [device] = reckoned(deployment([24], {"think": on("think", 0)}), used={0: GIB // 2}).devices
    assert device.usable == int(24 * GIB * (1 - KEPT_FREE)), "as much is kept free for the driver in any case"


def test_no_room_for_a_single_request_is_a_problem() -> None:
    placement = reckoned(deployment([12], {"think": on("think", 0)}))
    assert placement.problems == (
        f"the KV cache of think has room for {placement.caches[0].tokens:,} tokens, but one request needs 1,100 "
        "tokens.",
    )


def test_sizes_are_filled_in_for_stages_on_gpus() -> None:
    plain = deployment([24], {"think": on("think", 0), "sing": on("sing", 0), "see": on("see")})
    placement = reckoned(plain)
    [think], [sing], [see] = (worker.stages for worker in sized(plain, placement).workers)
    cache = placement.caches[0]
    assert think.options.max_total_tokens == cache.tokens
    assert think.static == 10 * GIB + cache.tokens * cache.token_bytes
    assert think.memory == placement.devices[0].holdings[0].total
    assert (sing.memory, sing.static) == (PROCESS_BYTES + GIB // 4, None)
    assert (see.memory, see.static) == (None, None)


def test_on_a_cpu_only_weights_count_in_the_type_they_are_held_in() -> None:
    for dtype, size in ((None, 20), ("bfloat16", 10), ("float64", 40)):
        placement = reckoned(deployment([], {"think": on("think", dtype=dtype)}))
        assert [device.taken for device in placement.devices] == [size * GIB]


def test_weights_beyond_the_machine_s_memory_are_refused_with_advice() -> None:
    placement = reckoned(deployment([], {"think": on("think"), "sing": on("sing")}), ram=8 * GIB)
    with pytest.raises(StartupError) as caught:
        refuse(placement)
    assert "the weights need 20.5 GiB on the CPU (think 20.0, sing 0.5), but only 8.0 GiB is available" in str(
        caught.value
    )
    assert "--device cuda" in str(caught.value)


def test_a_graph_that_tells_nothing_needs_nothing() -> None:
    plain = resolve(Config(model_path="x", graph=echo_config().graph, device="cpu"))
    assert place(plain, Checkpoint("x", {}, {})).devices == ()


def replicated(gpus: list[int], stage: str, places: list[int], **settings: Any) -> Deployment:
    """A deployment with one replica of `stage` on each of the GPUs in `places`."""
    found = deployment(gpus, {f"{stage}@{number}": on(stage, place, **settings) for number, place in enumerate(places)})
    workers = [structs.replace(worker, group="g", replica=number) for number, worker in enumerate(found.workers)]
    return structs.replace(found, workers=tuple(workers))


def test_each_replica_takes_its_memory_and_has_its_cache() -> None:
    one = reckoned(deployment([80], {"think": on("think", 0)}))
    apart = reckoned(replicated([80, 80], "think", [0, 1]))
    assert [device.taken for device in apart.devices] == [one.devices[0].taken] * 2
    assert [cache.tokens for cache in apart.caches] == [one.caches[0].tokens] * 2
    assert apart.requests == 2 * (one.requests or 0)


def test_replicas_on_one_gpu_divide_it() -> None:
    placement = reckoned(replicated([80], "talk", [0, 0]))
    [device] = placement.devices
    assert [holding.worker for holding in device.holdings] == ["talk@0", "talk@1"]
    assert [holding.process for holding in device.holdings] == [PROCESS_BYTES] * 2
    first, second = placement.caches
    assert first.tokens == second.tokens


def test_each_replica_is_sized_by_its_own_gpu() -> None:
    found = replicated([24, 80], "think", [0, 1])
    small, large = (worker.stages[0] for worker in sized(found, reckoned(found)).workers)
    assert small.static < large.static
    assert small.options.max_total_tokens < large.options.max_total_tokens


def test_replicas_that_do_not_fit_are_named() -> None:
    placement = reckoned(replicated([16], "think", [0, 0]))
    assert not placement.fits
    assert "think@0" in placement.problems[0]
    assert "think@1" in placement.problems[0]


def test_replicas_on_the_cpu_hold_their_own_weights() -> None:
    found = deployment([], {f"sing@{number}": on("sing") for number in range(3)})
    [device] = reckoned(found, ram=GIB).devices
    assert device.taken == 3 * GIB // 2  # float32


def test_limits_of_replicas_add_up() -> None:
    assert reckoned(replicated([80, 80], "sing", [0, 1])).limits == {"sing": 32}


def two_hosts(main: int, other: int, stage: str) -> Deployment:
    """Two replicas of a stage. One is on a GPU of the main host, and one on a GPU of the host b."""
    found = deployment([main, other], {f"{stage}@{number}": on(stage, number) for number in range(2)})
    here, there = found.workers
    first, second = found.gpus
    return structs.replace(
        found,
        workers=(here, structs.replace(there, host="b")),
        gpus=(first, structs.replace(second, host="b", offset=1, device="0")),
    )


def test_each_host_has_its_own_used_memory() -> None:
    hosts = {"b": HostFacts(used={0: 7 * GIB})}
    first, second = reckoned(two_hosts(24, 24, "think"), used={0: 3 * GIB}, hosts=hosts).devices
    assert (first.usable, second.usable) == (21 * GIB, 17 * GIB)


def test_a_device_of_another_host_has_the_number_that_it_has_there() -> None:
    placement = reckoned(two_hosts(24, 8, "think"))
    assert [device.label for device in placement.devices] == ["GPU 0 (Card24)", "GPU 0 of b (Card8)"]
    assert [device.index for device in placement.devices] == [0, 1]
    [problem] = placement.problems
    assert problem.startswith("the stages on GPU 0 of b (Card8) need")


def test_a_small_budget_is_reported_with_its_host() -> None:
    found = two_hosts(24, 24, "see")
    here, there = found.workers
    small = structs.replace(there, stages=tuple(on("see", 1, memory=GIB).values()))
    [problem] = reckoned(structs.replace(found, workers=(here, small))).problems
    assert problem.startswith("see may use 1.0 GiB of GPU 0 of b, but needs")


def test_each_replica_is_sized_by_the_gpu_of_its_host() -> None:
    found = two_hosts(24, 80, "think")
    placement = reckoned(found)
    small, large = (worker.stages[0] for worker in sized(found, placement).workers)
    assert small.options.max_total_tokens < large.options.max_total_tokens
    assert placement.requests == sum(cache.requests for cache in placement.caches)


def test_each_host_has_its_own_ram() -> None:
    found = deployment([], {f"sing@{number}": on("sing") for number in range(3)})
    workers = tuple(
        structs.replace(worker, host="b") if worker.name != "sing@0" else worker for worker in found.workers
    )
    placement = reckoned(structs.replace(found, workers=workers), ram=GIB, hosts={"b": HostFacts(ram=GIB // 2)})
    assert [(device.host, device.label, device.taken) for device in placement.devices] == [
        ("", "RAM", GIB // 2),
        ("b", "RAM of b", GIB),
    ]
    [problem] = placement.problems
    assert problem.startswith("the weights need 1.0 GiB on the CPU of b (sing@1 0.5, sing@2 0.5), but only 0.5 GiB")


def test_the_ram_of_an_unknown_host_has_no_limit() -> None:
    found = deployment([], {"sing@0": on("sing")})
    placement = reckoned(structs.replace(found, workers=(structs.replace(found.workers[0], host="b"),)), ram=1)
    assert placement.fits
