"""Torch, NVML and nvidia-smi describe the fake GPUs in the same way, and a failure in the child process gives a
readable error.
"""

from __future__ import annotations

from typing import Any

import pytest
from fake_gpu import H20, H100, H200, Accelerator, Card, Machine, RunFailed
from msgspec import structs

from omni_pipeline.gpus import MIB, parse
from tests.fake_gpu.inside import machine as inside

MACHINES = {"1xH100-80GB": H100, "2xH20-96GB": H20, "8xH200-141GB": H200}


def names(described: list[list[Any]]) -> list[str]:
    return [name for name, *_ in described]


@pytest.mark.parametrize("words", MACHINES)
def test_every_source_describes_the_same_gpus(words: str, accelerator: Accelerator) -> None:
    card, wanted = MACHINES[words], parse(words)
    found = accelerator.run(inside.described, machine=Machine.of(card, len(wanted)))
    assert [memory for _, memory, _ in found["detected"]] == [gpu.memory for gpu in wanted]
    assert (
        [name for name, _, _ in found["torch"]]
        == [name for name, _, _ in found["detected"]]
        == [card.name] * len(wanted)
    )
    assert found["capability"] == [capability for _, capability, _ in found["torch"]] == [[9, 0]] * len(wanted)
    assert found["smi"] == [str(gpu.memory // MIB) for gpu in wanted]
    assert all(0.99 < usable / gpu.memory < 1 for (_, _, usable), gpu in zip(found["torch"], wanted, strict=True))


def test_cuda_visible_devices_chooses_and_orders(accelerator: Accelerator) -> None:
    machine = Machine((H100, H200, H20))
    uuid = machine.devices[1].uuid
    found = accelerator.run(inside.described, machine=machine, environment={"CUDA_VISIBLE_DEVICES": f"2,{uuid}"})
    assert (
        [name for name, _, _ in found["torch"]] == [name for name, _, _ in found["detected"]] == [H20.name, H200.name]
    )


def test_entry_that_names_no_gpu_is_refused_here_and_ends_cudas_list(accelerator: Accelerator) -> None:
    machine = Machine((H100, H200, H20))
    hidden = {"CUDA_VISIBLE_DEVICES": "2,7,0"}
    assert [gpu.name for gpu in machine.visible(hidden)] == [H20.name]
    with pytest.raises(RunFailed, match="CUDA_VISIBLE_DEVICES: '7' selects no GPU"):
        accelerator.run(inside.described, machine=machine, environment=hidden)


def test_nothing_is_visible_where_the_environment_hides_it(accelerator: Accelerator) -> None:
    found = accelerator.run(inside.described, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert found["torch"] == found["detected"] == []


def test_nvml_tells_of_mig_instances(accelerator: Accelerator) -> None:
    divided = structs.replace(H100, instances=("3g.40gb", "4g.40gb"))
    machine = Machine((H100, divided))
    assert accelerator.run(inside.nvml_instances, machine=machine) == [
        [instance.uuid, 40 * 1024**3] for instance in machine.instances(1)
    ]


def test_cuda_sees_one_mig_instance() -> None:
    machine = Machine((structs.replace(H100, instances=("3g.40gb", "3g.40gb")),))
    first, second = machine.instances(0)
    assert machine.visible({}) == (first,)
    assert machine.visible({"CUDA_VISIBLE_DEVICES": f"{second.uuid},{first.uuid}"}) == (second,)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise", "ValueError: a wrong value"),
        ("compute", "RuntimeError"),
        ("hang", "ended by SIGALRM"),
        ("exit", "ended by exit code 3"),
    ],
)
def test_failure_brings_its_reason(what: str, message: str, accelerator: Accelerator) -> None:
    with pytest.raises(RunFailed, match=message):
        accelerator.run(inside.failing, what=what, seconds=1 if what == "hang" else 60)
    assert accelerator.run(inside.poison)


def test_output_of_a_failure_is_shown(accelerator: Accelerator) -> None:
    with pytest.raises(RunFailed, match="last words"):
        accelerator.run(inside.failing, what="raise")


def test_calls_do_not_see_each_other(accelerator: Accelerator) -> None:
    assert accelerator.run(inside.poison)
    assert accelerator.run(inside.poison)


def test_machine_of_another_generation_needs_a_child_of_its_own(accelerator: Accelerator) -> None:
    ada = Card("NVIDIA L40S", 46068, 142, capability=(8, 9))
    with pytest.raises(ValueError, match="another compute capability"):
        accelerator.run(inside.described, machine=Machine.of(ada))
