"""Threads and data types of the stages on a CPU follow from the sizes of the model and from the machine's CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from omni_pipeline.config.schema import Config, convert
from omni_pipeline.contract.cpu_fit import CpuChoice, OnCpu
from omni_pipeline.cpu_detection import Cpu
from omni_pipeline.deployment.apply_cpu_choices import with_cpu_choices
from omni_pipeline.deployment.checkpoint import Checkpoint, describe_checkpoint
from omni_pipeline.deployment.host_facts import HostFacts
from omni_pipeline.deployment.resolve import Deployment, resolve
from omni_pipeline.sizes import MIB
from stages.checkpoint.cpu_threads_and_dtypes import BFLOAT16, NICENESS, SHARES, choose
from stages.topology import QWEN3_OMNI

RELEASED = Path(__file__).parents[2] / "data" / "qwen3_omni_30b"
ALL = QWEN3_OMNI.stage_names
WEIGHTED = [stage.name for stage in QWEN3_OMNI.stages if stage.weights]


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    return json.loads((RELEASED / "config.json").read_text())


@pytest.fixture(scope="module")
def narrow(tiny_checkpoint: Path) -> dict[str, Any]:
    return json.loads((tiny_checkpoint / "config.json").read_text())


def threads(config: dict[str, Any], cores: int, stages: frozenset[str] = ALL) -> dict[str, int]:
    own = [stage for stage in WEIGHTED if stage in stages]
    return {stage: choose(OnCpu(stage, config, stages, Cpu(cores))).threads for stage in own}


@pytest.mark.parametrize(
    ("cores", "shares"),
    [(1, (1, 1, 1)), (2, (1, 1, 1)), (4, (1, 1, 1)), (8, (2, 2, 1)), (16, (5, 5, 2)), (64, (21, 21, 10))],
)
def test_wide_stages_share_all_cores_but_one(
    released: dict[str, Any], cores: int, shares: tuple[int, int, int]
) -> None:
    found = threads(released, cores)
    assert (found["thinker"], found["code_predictor"], found["talker_ar"]) == shares
    assert found["code2wav"] == found["image_encoder"] == found["audio_encoder"] == found["talker_ar"]
    assert sum(found[stage] for stage in SHARES) <= max(cores - 1, len(SHARES))


def test_without_speech_the_thinker_has_all_cores_but_one(released: dict[str, Any]) -> None:
    assert threads(released, 16, QWEN3_OMNI.text_stages)["thinker"] == 15


def test_narrow_stages_have_one_thread_and_float32(narrow: dict[str, Any]) -> None:
    cpu = Cpu(64, bfloat16=True)
    found = {stage: choose(OnCpu(stage, narrow | {"dtype": "bfloat16"}, ALL, cpu)) for stage in WEIGHTED}
    assert found == {stage: CpuChoice(niceness=NICENESS.get(stage, 0)) for stage in WEIGHTED}


@pytest.mark.parametrize(
    ("change", "fast", "typed"),
    [
        ({}, True, BFLOAT16),
        ({}, False, frozenset()),
        ({"dtype": "float32", "torch_dtype": "float32"}, True, frozenset()),
        ({"quantization_config": {"quant_method": "fp8"}}, True, frozenset()),
    ],
)
def test_wide_decoders_compute_in_the_fast_type_of_their_weights(
    released: dict[str, Any], change: dict[str, Any], fast: bool, typed: frozenset[str]
) -> None:
    cpu = Cpu(16, bfloat16=fast)
    found = {stage: choose(OnCpu(stage, released | change, ALL, cpu)).dtype for stage in WEIGHTED}
    assert {stage for stage, dtype in found.items() if dtype == "bfloat16"} == typed
    assert {dtype for stage, dtype in found.items() if stage not in typed} <= {None}


def test_replicas_of_a_stage_share_its_part_of_the_cores() -> None:
    config = {"model_path": str(RELEASED), "device": "cpu", "groups": {"all": {"replicas": 2}}}
    spec = QWEN3_OMNI.checkpoint
    assert spec is not None
    checkpoint = describe_checkpoint(str(RELEASED), spec)
    chosen = with_cpu_choices(resolve(convert(config, Config, ""), ()), checkpoint, {"": Cpu(16)})
    threads = {worker.name: worker.threads for worker in chosen.workers}
    assert (threads["thinker@0"], threads["thinker@1"], threads["talker_ar@1"]) == (2, 2, 1)


def deployed(**stages: Any) -> tuple[Deployment, Checkpoint]:
    spec = QWEN3_OMNI.checkpoint
    assert spec is not None
    config = convert({"model_path": str(RELEASED), "device": "cpu", "stages": stages}, Config, "")
    return resolve(config, ()), describe_checkpoint(str(RELEASED), spec)


def test_what_the_operator_sets_stays() -> None:
    deployment, checkpoint = deployed(
        thinker={"threads": 3, "options": {"dtype": "float32"}},
        talker_ar={"worker": "voice"},
        code2wav={"worker": "voice"},
    )
    chosen = with_cpu_choices(deployment, checkpoint, {"": Cpu(16, bfloat16=True)})
    workers = {worker.name: worker for worker in chosen.workers}
    assert workers["thinker"].threads == 3
    assert workers["thinker"].stages[0].options.dtype == "float32"
    assert workers["voice"].threads == 2
    assert [plan.options.dtype for plan in workers["voice"].stages] == ["bfloat16", None]
    assert workers["code_predictor"].threads == 5
    assert workers["preprocessing"].threads == workers["mm_aggregate"].threads == 1


def test_engines_let_other_stages_go_first_unless_they_share_a_worker() -> None:
    deployment, checkpoint = deployed(talker_ar={"worker": "voice"}, code2wav={"worker": "voice"})
    chosen = with_cpu_choices(deployment, checkpoint, {"": Cpu(16)})
    assert {worker.name: worker.niceness for worker in chosen.workers if worker.niceness} == {"thinker": 5}


def test_the_operators_niceness_stays() -> None:
    chosen = with_cpu_choices(*deployed(thinker={"niceness": 0}, code2wav={"niceness": 7}), {"": Cpu(16)})
    found = {worker.name: worker.niceness for worker in chosen.workers if worker.niceness}
    assert found == {"talker_ar": 5, "code2wav": 7}


def test_a_stage_on_a_gpu_is_left_as_it_is() -> None:
    from omni_pipeline.gpus import Gpu

    _, checkpoint = deployed()
    config = convert({"model_path": str(RELEASED)}, Config, "")
    gpus = [Gpu(0, "H100", 81559 * MIB, "0")]
    chosen = with_cpu_choices(resolve(config, gpus), checkpoint, {"": Cpu(16, bfloat16=True)})
    assert {worker.threads for worker in chosen.workers} == {1}
    plans = [plan for worker in chosen.workers for plan in worker.stages if plan.device == "cuda"]
    assert plans
    assert {plan.options.dtype for plan in plans} == {None}
    assert structs.replace(chosen, workers=()) == structs.replace(resolve(config, gpus), workers=())


def spread() -> tuple[Deployment, Checkpoint]:
    """Two whole pipelines on the CPUs of two hosts."""
    spec = QWEN3_OMNI.checkpoint
    assert spec is not None
    groups = {"all": {"replicas": 2, "hosts": ["main", "b"]}}
    tree = {"model_path": str(RELEASED), "groups": groups, "hosts": {"b": {}}, "cluster": {"listen": "10.0.0.1"}}
    return resolve(convert(tree, Config, ""), (), {"b": HostFacts()}), describe_checkpoint(str(RELEASED), spec)


def test_each_host_divides_its_own_cores() -> None:
    chosen = with_cpu_choices(*spread(), {"": Cpu(16), "b": Cpu(64)})
    threads = {worker.name: worker.threads for worker in chosen.workers}
    assert (threads["thinker@0"], threads["thinker@1"]) == (5, 21)


@pytest.mark.parametrize(("other", "dtype"), [(True, "bfloat16"), (False, None)])
def test_replicas_on_different_cpus_compute_in_the_same_type(other: bool, dtype: str | None) -> None:
    chosen = with_cpu_choices(*spread(), {"": Cpu(16, bfloat16=True), "b": Cpu(16, bfloat16=other)})
    types = {plan.options.dtype for worker in chosen.workers for plan in worker.stages if plan.name == "thinker"}
    assert types == {dtype}
