"""SGLang resolves its arguments on a GPU as expected, for every layout and every kind of checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_gpu import H20, H100, H200, Accelerator, Card, Machine, RunFailed
from faked_starts import checkpoints
from faked_starts.data import STAGES, Arguments, PlannedEngine
from faked_starts.layouts import CARDS, COUNTS, FakedStart, layouts
from faked_starts.resolution import Started

from tests.fake_gpu.conftest import DescribeEngine

# A captured graph serves all batches up to the batch size for which it was captured.
GRAPHS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64)

KINDS = {"BF16": ("auto", None), "FP8": ("cutlass", "fp8"), "INT4": ("auto", "compressed-tensors")}


def resolved(engines: Accelerator, engine: PlannedEngine, card: Card = H100) -> Arguments:
    order = [msgspec.to_builtins(engine)]
    [found] = engines.run("faked_starts.engines:resolve", machine=Machine.of(card, engine.ranks), engines=order)
    return msgspec.convert(found, Arguments)


def check(found: Arguments, stage: str, kind: str) -> None:
    """Check the arguments that every engine of the 30B model has on the GPUs H20, H100 and H200."""
    assert found.attention_backend == "fa3"
    assert (found.page_size, found.chunked_prefill_size) == (1, 8192)
    assert found.decode_graphs == GRAPHS
    assert not found.prefill_graphs
    assert (found.moe_runner_backend, found.quantization) == KINDS[kind]
    assert (found.kv_cache_dtype, found.dtype) == ("auto", "bfloat16")
    assert (found.max_running_requests, found.context_length) == (64, 65536)
    assert found.disable_overlap_schedule
    assert not found.disable_radix_cache


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("card", [H20, H100, H200], ids=lambda card: card.name)
def test_engine_of_each_kind_resolves_on_each_card(
    stage: str, kind: str, card: Card, engines: Accelerator, engine: DescribeEngine
) -> None:
    found = resolved(engines, engine(stage, kind), card)
    check(found, stage, kind)
    assert found.max_total_tokens == 100_000


def test_every_layout_is_started_on_some_machine(started: list[Started]) -> None:
    assert {each.start.layout for each in started} == set(layouts())
    assert len(layouts()) >= 10
    assert {(each.start.card, each.start.gpus) for each in started} == {(card, n) for card in CARDS for n in COUNTS}


def test_engines_of_every_layout_resolve_to_what_was_planned(started: list[Started]) -> None:
    for each in started:
        stage, found, placement = each.engine.stage, each.arguments, each.start.placement
        check(found, stage, each.start.kind)
        assert placement is not None
        cache = placement.cache(stage)
        assert cache is not None
        assert (found.max_total_tokens, found.tp_size) == (cache.tokens, each.engine.ranks)
        # The number of tokens limits the cache, so the memory fraction must not be a second limit.
        assert found.mem_fraction_static == 0.98


def test_thinker_is_shared_where_the_layout_says_so(started: list[Started]) -> None:
    shared = {each.start.layout for each in started if each.engine.ranks > 1}
    assert shared == {"qwen3_omni_4gpu"}


def test_starts_that_are_refused_say_why(all_starts: list[FakedStart]) -> None:
    for start in all_starts:
        if start.refused is not None:
            assert re.search(r"there is no GPU \d|quant_method", start.refused)


def test_checkpoint_keeps_its_own_type_where_none_is_asked_for(engines: Accelerator, tmp_path: Path) -> None:
    """Without our setting, SGLang converts float32 to float16."""
    path = checkpoints.write("BF16", tmp_path, layers=2)
    config = msgspec.json.decode((path / "config.json").read_bytes())
    for dtype in ("float32", "float16"):
        (path / "config.json").write_bytes(msgspec.json.encode({**config, "dtype": dtype}))
        for stage in STAGES:
            assert resolved(engines, PlannedEngine(stage, str(path), {"max_total_tokens": 1000}, STAGES)).dtype == dtype


@pytest.mark.parametrize("stage", STAGES)
def test_float32_has_attention_that_takes_it(stage: str, engines: Accelerator, engine: DescribeEngine) -> None:
    found = resolved(engines, engine(stage, "BF16", dtype="float32"))
    assert (found.attention_backend, found.dtype, found.decode_graphs) == ("triton", "float32", GRAPHS)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("FP8", {}, r"options\.dtype: float32 on a GPU does not work with .* quantised \(fp8\)"),
        ("INT4", {}, r"options\.dtype: float32 on a GPU does not work with .* quantised \(compressed-tensors\)"),
        ("BF16", {"attention_backend": "fa3"}, r"engine option 'attention_backend': fa3 does not support float32"),
        ("BF16", {"decode_attention_backend": "flashinfer"}, "'decode_attention_backend': flashinfer does not support"),
        ("BF16", {"moe_runner_backend": "cutlass"}, "engine option 'moe_runner_backend': cutlass does not support"),
    ],
)
def test_float32_is_refused_with_what_cannot_take_it(
    kind: str, options: dict[str, Any], message: str, engines: Accelerator, engine: DescribeEngine
) -> None:
    with pytest.raises(RunFailed, match=f"StartupError: {message}|StartupError: engine option {message}"):
        resolved(engines, engine("thinker", kind, dtype="float32", engine=options))
