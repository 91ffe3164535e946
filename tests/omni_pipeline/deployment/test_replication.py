"""Groups of stages become numbered workers, on the GPUs that the configuration names. If settings contradict each
other, the error explains this.
"""

from __future__ import annotations

from typing import Any

import pytest

from omni_pipeline.config.schema import Config, convert
from omni_pipeline.contract.plan import WorkerPlan
from omni_pipeline.deployment.resolve import Deployment, resolve
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import parse
from stages.topology import QWEN3_OMNI


def deployed(groups: dict[str, Any], gpus: str = "", **settings: Any) -> Deployment:
    """The deployment of Qwen3-Omni with these groups on the described GPUs."""
    tree = {"model_path": "x", "groups": groups, **settings}
    return resolve(convert(tree, Config, ""), parse(gpus) if gpus else ())


def workers(groups: dict[str, Any], gpus: str = "", **settings: Any) -> dict[str, WorkerPlan]:
    return {worker.name: worker for worker in deployed(groups, gpus, **settings).workers}


def test_without_groups_each_stage_runs_once_and_no_worker_has_a_number() -> None:
    found = workers({})
    assert tuple(found) == QWEN3_OMNI.stage_names
    assert {(worker.group, worker.replica, worker.base_name) for worker in found.values()} == {
        ("", 0, name) for name in QWEN3_OMNI.stage_names
    }


def test_a_group_runs_as_often_as_was_said_and_other_stages_once() -> None:
    found = workers({"voice": {"replicas": 2}, "vocoder": {"replicas": 3}})
    assert [name for name in found if "@" in name] == [
        *("talker_ar@0", "talker_ar@1", "code_predictor@0", "code_predictor@1"),
        *("code2wav@0", "code2wav@1", "code2wav@2"),
    ]
    assert len(found) == 6 + 2 * 2 + 3
    one = found["code_predictor@1"]
    assert (one.group, one.replica, one.base_name, one.stage_names) == (
        *("voice", 1, "code_predictor"),
        ("code_predictor",),
    )


def test_stages_that_share_a_worker_are_replicated_together() -> None:
    together = {name: {"worker": "speech"} for name in ("talker_ar", "code_predictor")}
    found = workers({"voice": {"replicas": 2}}, stages=together)
    assert found["speech@1"].stage_names == ("talker_ar", "code_predictor")


@pytest.mark.parametrize("group", [{"all": {"replicas": 2}}, {"lines": {"stages": "*", "replicas": 2}}], ids=str)
def test_whole_pipelines(group: dict[str, Any]) -> None:
    found = workers(group)
    assert len(found) == 2 * len(QWEN3_OMNI.stage_names)
    assert {worker.group for worker in found.values()} == set(group)


def test_a_text_only_server_leaves_out_the_groups_that_speak() -> None:
    assert "@" not in "".join(workers({"voice": {"replicas": 2}}, text_only=True))
    assert len(workers({"all": {"replicas": 2}}, text_only=True)) == 12


def test_replicas_that_are_not_started_are_planned_too() -> None:
    found = workers({"vocoder": {"replicas": 1, "max_replicas": 3, "gpus": [[0], [1], [1]]}}, "2xH100-80GB")
    assert [found[f"code2wav@{replica}"].spare for replica in range(3)] == [False, True, True]
    assert found["code2wav@2"].stages[0].gpus == (1,)


def test_each_replica_gets_its_gpus() -> None:
    found = workers({"vocoder": {"replicas": 3, "gpus": [[1], [1], [2]]}}, "3xH100-80GB")
    assert [found[f"code2wav@{replica}"].stages[0].gpus for replica in range(3)] == [(1,), (1,), (2,)]
    assert found["talker_ar"].stages[0].gpus == (1,)  # as without the group
    assert found["code2wav@2"].gpus != found["code2wav@1"].gpus


def test_replicas_without_gpus_of_their_own_share_those_of_their_stages() -> None:
    found = workers({"vocoder": {"replicas": 2}}, "2xH100-80GB")
    assert [found[f"code2wav@{replica}"].stages[0].gpus for replica in range(2)] == [(1,), (1,)]


def test_stages_of_a_replica_are_placed_among_its_gpus_as_on_a_machine_with_only_these() -> None:
    found = workers({"all": {"replicas": 2, "gpus": [[0, 1], [2, 3]]}}, "4xH100-80GB")
    assert [found[f"thinker@{replica}"].stages[0].gpus for replica in range(2)] == [(0,), (2,)]
    assert [found[f"talker_ar@{replica}"].stages[0].gpus for replica in range(2)] == [(1,), (3,)]
    # A replica waits only for the workers that load on its own GPU.
    assert set(found["thinker@1"].after) == {"image_encoder@1", "audio_encoder@1"}


def test_a_colocated_pipeline_on_each_gpu() -> None:
    found = workers({"all": {"replicas": 2, "gpus": [[1], [0]]}}, "2xH100-80GB", colocate=True)
    assert [{plan.gpus for plan in found[f"gpu@{replica}"].stages} for replica in range(2)] == [{(1,)}, {(0,)}]


def test_each_replica_of_a_tensor_parallel_stage_has_its_own_ranks() -> None:
    group = {"writers": {"stages": ["thinker"], "replicas": 2, "gpus": [[0, 1], [2, 3]]}}
    found = workers(group, "4xH100-80GB", stages={"thinker": {"tp_size": 2}})
    assert [found[f"thinker@{replica}"].stages[0].gpus for replica in range(2)] == [(0, 1), (2, 3)]
    assert found["thinker@1"].stages[0].tp_size == 2


def test_replicas_that_load_on_one_gpu_load_one_after_the_other() -> None:
    found = workers({"writers": {"stages": ["thinker"], "replicas": 2}}, "1xH200-141GB")
    assert "thinker@0" in found["thinker@1"].after


@pytest.mark.parametrize(
    ("groups", "settings", "message"),
    [
        ({"vocodr": {}}, {}, "groups.vocodr: the model has no group and no stage of this name; did you mean vocoder?"),
        ({"a b": {}}, {}, "groups: 'a b' is not a name"),
        ({"x": {"stages": ["thinkr"]}}, {}, "groups.x.stages: there is no stage thinkr; did you mean thinker?"),
        ({"x": {"stages": []}}, {}, "groups.x.stages: the list is empty"),
        ({"x": {"stages": ["talker_ar"]}}, {}, "groups.x.stages: talker_ar needs code_predictor in the same group"),
        ({"vocoder": {}, "all": {}}, {}, "groups.all.stages: code2wav is already in the group vocoder"),
        ({"vocoder": {"replicas": 2, "gpus": [[0]]}}, {}, "there are 2 replicas, but the number of lists is 1"),
        (
            {"vocoder": {"replicas": 3, "max_replicas": 2}},
            {},
            "groups.vocoder.max_replicas: 2 is less than groups.vocoder.replicas, which is 3.",
        ),
        ({"vocoder": {"replicas": 0}}, {}, "replicas: expected `int` >= 1"),
        (
            {"vocoder": {"replicas": 1, "gpus": [[0]]}},
            {},
            "gpus: no stage of the group computes on a GPU",
        ),
        ({"vocoder": {"replica": 2}}, {}, "groups.vocoder.replica: there is no such setting; did you mean replicas?"),
        (
            {"vocoder": {"replicas": 2}},
            {"stages": {"code2wav": {"worker": "w"}, "decode": {"worker": "w"}}},
            "Worker w would run decode (in no group) and code2wav (in the group vocoder)",
        ),
        (
            {"vocoder": {"replicas": 2}},
            {"stages": {"decode": {"worker": "code2wav@1"}}},
            "Two workers would have the name code2wav@1",
        ),
    ],
    ids=str,
)
def test_contradictions_are_explained(groups: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        deployed(groups, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("group", "settings", "message"),
    [
        ({"replicas": 2, "gpus": [[0], [2]]}, {}, "groups.vocoder.gpus: there is no GPU 2; the GPUs are 0 to 1."),
        ({"replicas": 2, "gpus": [[0], []]}, {}, "groups.vocoder.gpus: each list needs at least one GPU"),
        (
            {"replicas": 2, "gpus": [[0], [1]]},
            {"stages": {"code2wav": {"gpus": [1]}}},
            "groups.vocoder.gpus: stages.code2wav.gpus also sets the GPUs",
        ),
    ],
    ids=str,
)
def test_contradictions_about_gpus_are_explained(group: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        deployed({"vocoder": group}, "2xH100-80GB", **settings)
    assert message in str(caught.value)


def test_memory_budgets_of_replicas_on_one_gpu_add_up() -> None:
    with pytest.raises(StartupError, match=r"code2wav@0 0.6 \+ code2wav@1 0.6"):
        workers({"vocoder": {"replicas": 2}}, "1xH100-80GB", stages={"code2wav": {"memory": 0.6}})
