"""Requests pass through the real engines in bfloat16 on a fake GPU without hidden waits.

SGLang's scheduler, its memory pools, its graph runner and our models work as usual; only the kernels compute nothing.
The run fails if the host reads from the device, if an operation mixes two devices, or if a model mixes types. Copies
between host and device are counted for each function that makes copies. The counts show that a step with many requests
waits no more often than a step with one request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_gpu import Accelerator, RunFailed

from tests.fake_gpu.inside import journey
from tests.fake_gpu.inside.journey import Step

RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor:SchedulerBatchResultProcessor."
PICKED = {RESULTS + "_normalize_decode_outputs": 1}
FIRST_PICKED = {RESULTS + "process_batch_result_prefill": 1}
SAMPLER = "stages.sglang_engine.sampler:"
TAPPED_IDS = "stages.sglang_engine.tapped_ids:TappedIds."
ENGINE = "stages.sglang_engine.fed_engine:FedEngine."

# In a step that samples every row, one copy to the device contains the random numbers. Further copies contain the
# filters' parameters.
DRAWN = {SAMPLER + "draw": 1}
FILTERS = "stages.sampling_filters:Filters.of.<locals>.column"

# Numbers of kernels in the graphs of decode steps with 8, 4, 2 and 1 requests.
KERNELS = {"thinker": [160, 160, 160, 148], "talker": [107, 107, 107, 101]}


@pytest.fixture(scope="module")
def thinker(engines: Accelerator, tiny_checkpoint: Path) -> dict[str, Any]:
    return engines.run(journey.thinker, model_path=str(tiny_checkpoint))


@pytest.fixture(scope="module")
def talker(engines: Accelerator, tiny_checkpoint: Path) -> dict[str, Any]:
    return engines.run(journey.talker, model_path=str(tiny_checkpoint))


def steps(told: dict[str, Any], phase: str | None = None, *, prefill: bool | None = None) -> list[Step]:
    found = msgspec.convert(told["steps"], list[Step])
    return [step for step in found if phase in (None, step.phase) and prefill in (None, step.prefill)]


@pytest.mark.parametrize("which", ["thinker", "talker"])
def test_decode_steps_of_any_size_are_graphs(which: str, request: pytest.FixtureRequest) -> None:
    told = request.getfixturevalue(which)
    # The graphs are for 8, 4, 2 and 1 requests. Other batches are padded to these sizes.
    assert len(told["captures"]) == 4
    for step in steps(told):
        assert step.graphs == (0 if step.prefill else 1), step
    assert {1, 2, 3, 5} <= {len(step.batch) for step in steps(told, prefill=False)}


@pytest.mark.parametrize("which", ["thinker", "talker"])
def test_kernels_of_a_decode_step(which: str, request: pytest.FixtureRequest) -> None:
    told = request.getfixturevalue(which)
    assert told["captures"] == KERNELS[which]


def test_a_long_prompt_is_computed_in_chunks_and_tapped_once(thinker: dict[str, Any]) -> None:
    chunks = steps(thinker, "clip", prefill=True)
    assert [step.batch for step in chunks] == [["clip"], ["clip"]]
    assert [step.tapped for step in chunks] == [{}, {"clip": [[66, thinker["hidden"]], "torch.bfloat16", "cuda"]}]


def test_states_of_a_prompt_that_is_cached_are_tapped_too(thinker: dict[str, Any]) -> None:
    [step] = steps(thinker, "again", prefill=True)
    assert step.cached == {"again": 69}
    assert step.tapped == {"again": [[66, thinker["hidden"]], "torch.bfloat16", "cuda"]}


def test_a_prefill_step_reads_only_what_was_picked_and_where_it_has_put_states(thinker: dict[str, Any]) -> None:
    for phase in ("text", "clip", "again", "greedy 1", "greedy 5", "too many"):
        assert [step.to_host for step in steps(thinker, phase, prefill=True)]
        for step in steps(thinker, phase, prefill=True):
            ids = {TAPPED_IDS + "renew": 1, TAPPED_IDS + "of": len(step.tapped)}
            assert Counter(step.to_host) == Counter({**FIRST_PICKED, **ids})


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_greedy_step_copies_nothing_but_what_was_picked(thinker: dict[str, Any], size: int) -> None:
    [step, *_] = steps(thinker, f"greedy {size}", prefill=False)
    assert len(step.batch) == size
    assert step.to_host == PICKED
    assert step.to_device == {}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_sampled_step_copies_as_often_for_many_requests_as_for_one(thinker: dict[str, Any], size: int) -> None:
    *_, step = steps(thinker, f"sampled {size}", prefill=False)
    assert len(step.batch) == size
    assert step.to_host == {**PICKED, SAMPLER + "_report": 1}
    # One copy is for the indices of the rows whose log-probabilities are reported, and one for the tokens since the
    # previous step.
    assert step.to_device == {
        **DRAWN,
        SAMPLER + "OmniSampler.forward": 1,
        SAMPLER + "count_output": 1,
        FILTERS: 4,
    }


def test_a_prompt_whose_memory_was_taken_back_is_computed_again(thinker: dict[str, Any]) -> None:
    assert thinker["preemptions"] > 0
    assert list(recomputed(steps(thinker, "too many")))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_frame_copies_as_often_for_many_voices_as_for_one(talker: dict[str, Any], size: int) -> None:
    frames = steps(talker, f"voices {size}", prefill=False)
    assert frames
    for step in frames:
        assert len(step.batch) == size
        assert step.to_host == {**PICKED, ENGINE + "_collect_states": 1}
        assert step.to_device == {**DRAWN, ENGINE + "_take_rows": 1, SAMPLER + "count_output": 1, FILTERS: 2}


def test_voices_with_the_same_prompt_share_it(talker: dict[str, Any]) -> None:
    """All prompts of the first phases are equal, and have 21 rows."""
    assert talker["cached"] >= 20 * (1 + 2 + 3 + 5 - 1)


def test_a_voice_without_text_sits_out(talker: dict[str, Any]) -> None:
    batches = [set(step.batch) for step in steps(talker, "waiting", prefill=False)]
    assert {"stays", "waits", "goes"} in batches
    assert {"stays"} in batches
    assert batches[-1] == {"waits"}


def test_a_voice_whose_memory_was_taken_back_is_computed_again(talker: dict[str, Any]) -> None:
    assert talker["preemptions"] > 0
    for step in recomputed(steps(talker, "too many")):
        assert step.to_host == {**FIRST_PICKED, ENGINE + "_collect_states": 1}


def recomputed(taken: list[Step]) -> Iterator[Step]:
    """Steps that compute a prompt again, for a request that had already decoded tokens."""
    decoded: set[str] = set()
    for step in taken:
        if step.prefill and decoded & set(step.batch):
            yield step
        elif not step.prefill:
            decoded |= set(step.batch)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("read", r"HostRead: _local_scalar_dense in tests\.fake_gpu\.inside\.journey:"),
        ("device", "same device, but found at least two devices, cuda:0 and cpu"),
        ("type", r"TypeMix: mul in stages\.sglang_engine\.rotary:ApplyAngles\._rotate"),
    ],
)
def test_a_fault_in_a_model_ends_its_journey(
    engines: Accelerator, tiny_checkpoint: Path, fault: str, message: str
) -> None:
    with pytest.raises(RunFailed, match=message):
        engines.run(journey.thinker, model_path=str(tiny_checkpoint), fault=fault)
