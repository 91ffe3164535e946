"""A configuration is resolved to the right settings of each stage."""

from __future__ import annotations

from typing import Any

import pytest

from omni_pipeline.config.schema import Config, convert
from omni_pipeline.deployment import resolve as resolution
from omni_pipeline.deployment.resolve import Deployment
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu, parse
from tests.omni_pipeline.echo_stages import ECHO_PATH, Options

H100 = parse("8xH100-80GB")


def echo(**settings: Any) -> Config:
    """A configuration of the echo graph. It has been checked against the schema, but is not resolved yet."""
    return convert({"model_path": "x", "graph": ECHO_PATH, **settings}, Config, "")


def resolve(gpus: int = 0, **settings: Any) -> Deployment:
    """The echo graph, resolved for a machine with this many H100 GPUs."""
    return resolution.resolve(echo(**settings), H100[:gpus])


def test_each_stage_has_a_worker_of_its_own_by_default() -> None:
    found = resolve()
    assert [(worker.name, worker.stage_names) for worker in found.workers] == [
        (name, (name,)) for name in ("split", "shout", "join")
    ]


def test_stages_that_name_a_worker_share_it_in_graph_order() -> None:
    stages = {"join": {"worker": "ends", "threads": 3}, "split": {"worker": "ends"}}
    found = resolve(stages=stages)
    assert [(worker.name, worker.stage_names, worker.threads) for worker in found.workers] == [
        ("ends", ("split", "join"), 3),
        ("shout", ("shout",), None),
    ]


def test_options_become_their_struct() -> None:
    found = resolve(stages={"join": {"options": {"refuse": "no"}}})
    assert found.workers[2].stages[0].options == Options(refuse="no")


@pytest.mark.parametrize(
    ("gpus", "settings", "devices"),
    [
        (0, {}, ["cpu", "cpu", "cpu"]),
        (1, {}, ["cpu", "cuda", "cuda"]),
        (1, {"device": "cpu"}, ["cpu", "cpu", "cpu"]),
        (1, {"device": "cuda"}, ["cpu", "cuda", "cuda"]),
        (1, {"stages": {"shout": {"device": "cpu"}}}, ["cpu", "cpu", "cuda"]),
        (1, {"device": "cpu", "stages": {"shout": {"device": "cuda"}}}, ["cpu", "cuda", "cpu"]),
    ],
    ids=str,
)
def test_device_of_each_stage(gpus: int, settings: dict[str, Any], devices: list[str]) -> None:
    found = resolve(gpus, **settings)
    assert [worker.stages[0].device for worker in found.workers] == devices
    assert found.uses_cuda == ("cuda" in devices)


def test_stages_without_an_accelerator_may_share_a_worker_with_one() -> None:
    found = resolve(1, stages={name: {"worker": "all"} for name in ("split", "shout", "join")})
    assert [stage.device for stage in found.workers[0].stages] == ["cpu", "cuda", "cuda"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_path": None}, "pass --model-path"),
        ({"graph": "tests.nothing:HERE"}, "cannot load tests.nothing:HERE"),
        ({"graph": "no colon"}, "cannot load no colon"),
        ({"graph": f"{__name__}:resolve"}, "is a function, not a stage graph"),
        ({"stages": {"shut": {}}}, "stages.shut: there is no such stage; did you mean shout?"),
        (
            {"server": {"limits": {"stage_requests": {"shut": 1}}}},
            "server.limits.stage_requests.shut: there is no such stage; did you mean shout?",
        ),
        ({"stages": {"shout": {"options": {"refus": 1}}}}, "stages.shout.options.refus: there is no such setting; did"),
        ({"stages": {"shout": {"options": {"refuse": 1}}}}, "stages.shout.options.refuse: expected `str`, got `int`."),
        ({"device": "cuda"}, "no GPU is visible: use --device cpu"),
        ({"stages": {"split": {"device": "cuda"}}}, "stages.split.device: this stage computes on the CPU only."),
    ],
    ids=str,
)
def test_contradiction_is_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        resolve(**settings)
    assert message in str(caught.value)


def test_worker_cannot_be_on_two_kinds_of_device() -> None:
    stages = {"shout": {"worker": "w", "device": "cpu"}, "join": {"worker": "w", "device": "cuda"}}
    with pytest.raises(StartupError, match="shout on the CPU and join on a GPU"):
        resolve(1, stages=stages)


def test_worker_cannot_take_the_name_of_a_stage_it_does_not_run() -> None:
    stages = {"split": {"worker": "join"}, "join": {"worker": "other"}}
    with pytest.raises(StartupError, match="choose another name"):
        resolve(stages=stages)


def test_modules_are_preloaded_once() -> None:
    assert resolve().preload() == ("decimal",)


@pytest.mark.parametrize(
    ("gpus", "settings", "sets"),
    [
        (1, {}, [(), (0,), (0,)]),
        (2, {}, [(), (0,), (1,)]),
        (2, {"stages": {"shout": {"gpus": [1]}}}, [(), (1,), (0,)]),
        (4, {"stages": {"shout": {"gpus": [1, 3]}}}, [(), (1, 3), (2,)]),
        (4, {"stages": {"shout": {"tp_size": 2}}}, [(), (0, 1), (2,)]),
        (2, {"stages": {"shout": {"tp_size": 2}}}, [(), (0, 1), (1,)]),
        (4, {"colocate": True}, [(), (0,), (0,)]),
        (4, {"colocate": True, "stages": {"join": {"gpus": [3]}}}, [(), (3,), (3,)]),
    ],
    ids=str,
)
def test_gpus_of_each_stage(gpus: int, settings: dict[str, Any], sets: list[tuple[int, ...]]) -> None:
    plans = {plan.name: plan for worker in resolve(gpus, **settings).workers for plan in worker.stages}
    assert [plans[name].gpus for name in ("split", "shout", "join")] == sets


def test_worker_sees_its_gpus_as_the_server_was_given_them() -> None:
    found = resolution.resolve(
        echo(stages={"join": {"gpus": [1]}}),
        [Gpu(0, "H100", 1, "5"), Gpu(1, "H100", 1, "GPU-abc")],
    )
    assert [worker.gpus for worker in found.workers] == [(), ("5",), ("GPU-abc",)]


def test_colocated_stages_share_a_worker_unless_they_name_one() -> None:
    found = resolve(1, colocate=True)
    assert [(worker.name, worker.stage_names) for worker in found.workers] == [
        ("split", ("split",)),
        ("gpu", ("shout", "join")),
    ]
    found = resolve(1, colocate=True, stages={"join": {"worker": "own"}})
    assert [worker.name for worker in found.workers] == ["split", "gpu", "own"]


@pytest.mark.parametrize(
    ("memory", "size"), [(0.5, 81559 * 1024**2 // 2), ("12GiB", 12 * 1024**3), ("1.5 GB", 1_500_000_000), (None, None)]
)
def test_budget_in_bytes(memory: Any, size: int | None) -> None:
    assert resolve(1, stages={"join": {"memory": memory}}).workers[2].stages[0].memory == size


def test_environments_of_a_worker_are_joined() -> None:
    stages = {"shout": {"worker": "w", "environment": {"A": "1"}}, "join": {"worker": "w", "environment": {"B": "2"}}}
    assert resolve(stages=stages).workers[1].environment == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("gpus", "settings", "message"),
    [
        (
            1,
            {"stages": {"join": {"gpus": [1]}}},
            "stages.join.gpus: there is no GPU 1; there is only GPU 0 (H100-80GB)",
        ),
        (2, {"stages": {"join": {"gpus": [2]}}}, "stages.join.gpus: there is no GPU 2; the GPUs are 0 to 1."),
        (2, {"stages": {"shout": {"gpus": [1, 1]}}}, "stages.shout.gpus: GPU 1 is named twice."),
        (2, {"stages": {"join": {"gpus": [0, 1]}}}, "join computes on one GPU, and cannot use 2 GPUs."),
        (
            2,
            {"stages": {"shout": {"gpus": [0, 1], "tp_size": 3}}},
            "3 ranks need one GPU each, but stages.shout.gpus names 2 GPUs",
        ),
        (2, {"stages": {"shout": {"tp_size": 3}}}, "3 ranks need 3 GPUs, but this stage can have only 2 GPUs."),
        (2, {"stages": {"join": {"tp_size": 2}}}, "stages.join.tp_size: join does not support tensor parallelism."),
        (0, {"stages": {"join": {"tp_size": 2}}}, "stages.join.tp_size: join does not support tensor parallelism."),
        (2, {"colocate": True, "stages": {"shout": {"tp_size": 2}}}, "so shout cannot have several"),
        (
            2,
            {"colocate": True, "stages": {"shout": {"gpus": [0]}, "join": {"gpus": [1]}}},
            "The setting 'colocate' puts all stages on one GPU, but the settings of the stages name the GPUs 0, 1 "
            "(shout: 0, join: 1).",
        ),
        (
            0,
            {"stages": {"join": {"gpus": [0]}}},
            "join cannot use a GPU: it computes on the CPU, because no GPU is visible.",
        ),
        (1, {"stages": {"split": {"gpus": [0]}}}, "split cannot use a GPU: it computes on the CPU."),
        (
            0,
            {"stages": {"join": {"memory": 0.5}}},
            "stages.join.memory: join cannot have a GPU memory budget: it computes on",
        ),
        (
            2,
            {"stages": {"shout": {"worker": "w", "gpus": [0]}, "join": {"worker": "w", "gpus": [1]}}},
            "Worker w would run shout on GPU 0 and join on GPU 1, but all stages of one worker must use the same GPUs.",
        ),
        (
            2,
            {"stages": {"shout": {"worker": "w", "gpus": [0, 1]}, "join": {"worker": "w", "gpus": [0]}}},
            "Worker w would run shout in 2 ranks beside join, but a stage with several ranks needs a worker without",
        ),
        (0, {"stages": {"shout": {"worker": "w", "tp_size": 2}, "join": {"worker": "w"}}}, "2 ranks beside join"),
        (
            1,
            {"stages": {"shout": {"memory": 0.7}, "join": {"memory": 0.4}}},
            "GPU 0 (H100-80GB) add up to 1.1 times its memory: shout 0.7 + join 0.4.",
        ),
        (
            1,
            {"stages": {"join": {"environment": {"CUDA_VISIBLE_DEVICES": "0"}}}},
            "the server itself sets CUDA_VISIBLE_DEVICES; set stages.join.gpus instead",
        ),
        (1, {"stages": {"shout": {"memory": "100GiB"}}}, "add up to 1.26 times its memory: shout 1.26."),
        (
            0,
            {"stages": {n: {"worker": "w", "environment": {"A": n}} for n in ("shout", "join")}},
            "Worker w cannot set the environment variable A both to shout for shout and to join for join.",
        ),
    ],
    ids=str,
)
def test_placement_that_cannot_work_is_refused(gpus: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        resolve(gpus, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("gpus", "settings", "after"),
    [
        (0, {}, {}),
        (1, {}, {"join": ("shout",)}),
        (2, {}, {}),
        (2, {"stages": {"shout": {"gpus": [0, 1]}, "join": {"gpus": [1]}}}, {"join": ("shout",)}),
        (1, {"stages": {name: {"worker": "w"} for name in ("shout", "join")}}, {}),
    ],
    ids=str,
)
def test_stage_that_fills_its_memory_waits_for_others_on_its_gpu(
    gpus: int, settings: dict[str, Any], after: dict[str, tuple[str, ...]]
) -> None:
    found = resolve(gpus, **settings)
    assert {worker.name: worker.after for worker in found.workers if worker.after} == after


def test_engines_load_one_after_the_other_and_last() -> None:
    found = resolution.resolve(Config(model_path="x"), H100[:1])
    after = {worker.name: worker.after for worker in found.workers if worker.after}
    others = ("image_encoder", "audio_encoder", "code_predictor", "code2wav")
    assert after == {"thinker": others, "talker_ar": (*others, "thinker")}


def test_worker_on_a_gpu_or_with_an_environment_is_not_forked() -> None:
    found = resolve(1, stages={"split": {"environment": {"A": "1"}}, "shout": {"device": "cpu"}})
    assert [worker.fresh for worker in found.workers] == [True, False, True]
    assert found.preload() == ()


def test_layout_says_who_is_on_which_gpu() -> None:
    found = resolve(3, stages={"shout": {"gpus": [0, 2]}, "join": {"gpus": [2]}})
    assert found.layout == ("GPU 0 (H100-80GB): shout", "GPU 2 (H100-80GB): shout, join")
    assert resolve().layout == ()
