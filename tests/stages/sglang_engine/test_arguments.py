"""Our options are converted to SGLang's server arguments. Forbidden arguments are refused, and the engine's share of
the GPU's memory is as planned.
"""

from __future__ import annotations

from typing import Any

import pytest

from omni_pipeline.errors import StartupError
from stages.sglang_engine.arguments import moe_backend, server_arguments, static_fraction

GIB = 2**30
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chunked_prefil_size", "is not an SGLang server argument; did you mean chunked_prefill_size?"),
        ("skip_tokenizer_init", "is set by omni-pipeline and cannot be changed"),
        ("disable_prefill_cuda_graph", "is set by omni-pipeline and cannot be changed"),
        ("tp_size", "cannot be set here; use the stage's tp_size"),
        ("mem_fraction_static", "cannot be set here; use the stage's memory or options.mem_fraction_static"),
        ("model_path", "cannot be set here; use --model-path"),
    ],
)
def test_engine_option_that_is_not_the_operators_is_refused(name: str, message: str) -> None:
    with pytest.raises(StartupError) as caught:
        arguments(engine={name: 1})
    assert message in str(caught.value)


def test_engine_options_win_over_our_defaults() -> None:
    made = arguments(engine={"chunked_prefill_size": 24, "page_size": 4})
    assert (made.chunked_prefill_size, made.page_size, made.tp_size) == (24, 4, 2)


def test_prompts_are_never_computed_by_a_captured_graph() -> None:
    assert arguments().disable_prefill_cuda_graph


def arguments(**changed: Any) -> Any:
    return server_arguments(
        **{
            "model_path": "x",
            "architecture": "Qwen3OmniThinker",
            "device": "cpu",
            "dtype": None,
            "max_total_tokens": None,
            "max_running_requests": 4,
            "engine": {},
            "tp_size": 2,
            **changed,
        }
    )


@pytest.mark.parametrize(
    ("static", "free", "fraction"),
    [
        (40, 80, 0.52),  # the engine is alone on its GPU
        (40, 60, 0.6933),  # other programs use 20 GiB, so the fraction of the free memory is larger
        (10, 20, 0.58),
        (60, 62, 0.98),  # the fraction is always less than all of the free memory
    ],
)
def test_fraction_is_of_what_is_free_when_the_engine_starts(static: int, free: int, fraction: float) -> None:
    found = static_fraction(static * GIB, free * GIB, 80 * GIB, bounded=False)
    assert found == pytest.approx(fraction, abs=1e-3)


@pytest.mark.parametrize(("static", "free"), [(40, 80), (40, 60), (10, 20)])
def test_cache_that_sglang_makes_of_it_is_the_planned_one_or_a_little_larger(static: int, free: int) -> None:
    """SGLang's cache has this size: free memory after loading - free memory before loading · (1 - fraction)."""
    weights = static // 2
    fraction = static_fraction(static * GIB, free * GIB, 80 * GIB, bounded=False)
    cache = (free - weights) - free * (1 - fraction)
    assert static - weights <= cache <= static - weights + 0.02 * 80 + 1e-6


def test_gpu_that_something_else_uses_is_refused() -> None:
    with pytest.raises(StartupError, match=r"40\.0 GiB are planned .* but only 30\.0 of the GPU's 80\.0 GiB are free"):
        static_fraction(40 * GIB, 30 * GIB, 80 * GIB, bounded=True)


def test_cache_with_a_number_of_tokens_is_not_bounded_by_a_fraction_too() -> None:
    assert static_fraction(40 * GIB, 60 * GIB, 80 * GIB, bounded=True) == 0.98


@pytest.mark.parametrize(
    ("quantization", "capability", "backend"),
    [
        (BLOCKS, (9, 0), "cutlass"),
        (BLOCKS, (10, 0), "cutlass"),
        (BLOCKS, (8, 9), None),
        ({"quant_method": "fp8"}, (9, 0), None),
        ({"quant_method": "awq", "weight_block_size": [128, 128]}, (9, 0), None),
        ({}, (9, 0), None),
    ],
)
def test_fp8_experts_go_to_cutlass_where_it_has_them(
    quantization: dict[str, Any], capability: tuple[int, int], backend: str | None
) -> None:
    assert moe_backend(quantization, capability) == backend
