"""What a configuration comes down to, stage by stage."""

from __future__ import annotations

from typing import Any

import pytest

from omni_pipeline import deployment
from omni_pipeline.config import load
from omni_pipeline.deployment import Deployment, cuda_present
from omni_pipeline.errors import StartupError
from tests.omni_pipeline.echo_stages import ECHO_PATH, Options


def resolve(monkeypatch: pytest.MonkeyPatch, gpu: bool = False, **settings: Any) -> Deployment:
    monkeypatch.setattr(deployment, "cuda_present", lambda: gpu)
    return deployment.resolve(load(None, {"model_path": "x", "graph": ECHO_PATH, **settings}))


def test_each_stage_has_a_worker_of_its_own_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve(monkeypatch)
    assert [(worker.name, worker.stage_names) for worker in found.workers] == [
        (name, (name,)) for name in ("split", "shout", "join")
    ]


def test_stages_that_name_a_worker_share_it_in_graph_order(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {"join": {"worker": "ends", "threads": 3}, "split": {"worker": "ends"}}
    found = resolve(monkeypatch, stages=stages)
    assert [(worker.name, worker.stage_names, worker.threads) for worker in found.workers] == [
        ("ends", ("split", "join"), 3),
        ("shout", ("shout",), 1),
    ]


def test_options_become_their_struct(monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve(monkeypatch, stages={"join": {"options": {"refuse": "no"}}})
    assert found.workers[2].stages[0].options == Options(refuse="no")


@pytest.mark.parametrize(
    ("gpu", "settings", "devices"),
    [
        (False, {}, ["cpu", "cpu", "cpu"]),
        (True, {}, ["cpu", "cuda", "cuda"]),
        (True, {"device": "cpu"}, ["cpu", "cpu", "cpu"]),
        (True, {"device": "cuda"}, ["cpu", "cuda", "cuda"]),
        (True, {"stages": {"shout": {"device": "cpu"}}}, ["cpu", "cpu", "cuda"]),
        (True, {"device": "cpu", "stages": {"shout": {"device": "cuda"}}}, ["cpu", "cuda", "cpu"]),
    ],
    ids=str,
)
def test_device_of_each_stage(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, settings: dict[str, Any], devices: list[str]
) -> None:
    found = resolve(monkeypatch, gpu, **settings)
    assert [worker.stages[0].device for worker in found.workers] == devices
    assert found.uses_cuda == ("cuda" in devices)


def test_stages_without_an_accelerator_may_share_a_worker_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve(monkeypatch, True, stages={name: {"worker": "all"} for name in ("split", "shout", "join")})
    assert [stage.device for stage in found.workers[0].stages] == ["cpu", "cuda", "cuda"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_path": None}, "pass --model-path"),
        ({"graph": "tests.nothing:HERE"}, "cannot load tests.nothing:HERE"),
        ({"graph": "no colon"}, "cannot load no colon"),
        ({"graph": f"{__name__}:resolve"}, "is a function, not a stage graph"),
        ({"stages": {"shut": {}}}, "stages.shut: there is no such stage; did you mean shout?"),
        ({"stages": {"shout": {"options": {"refus": 1}}}}, "stages.shout.options.refus: there is no such setting; did"),
        ({"stages": {"shout": {"options": {"refuse": 1}}}}, "stages.shout.options.refuse: expected `str`, got `int`."),
        ({"device": "cuda"}, "no GPU is visible: use --device cpu"),
        ({"stages": {"split": {"device": "cuda"}}}, "stages.split.device: this stage computes on the CPU only."),
    ],
    ids=str,
)
def test_contradiction_is_explained(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        resolve(monkeypatch, **settings)
    assert message in str(caught.value)


def test_worker_cannot_be_on_two_kinds_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {"shout": {"worker": "w", "device": "cpu"}, "join": {"worker": "w", "device": "cuda"}}
    with pytest.raises(StartupError, match="shout on the CPU and join on a GPU"):
        resolve(monkeypatch, True, stages=stages)


def test_worker_cannot_take_the_name_of_a_stage_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {"split": {"worker": "join"}, "join": {"worker": "other"}}
    with pytest.raises(StartupError, match="choose another name"):
        resolve(monkeypatch, stages=stages)


def test_modules_are_preloaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(monkeypatch).preload() == ("decimal",)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not cuda_present()
