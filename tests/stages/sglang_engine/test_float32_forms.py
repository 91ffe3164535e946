"""The torch implementation of experts for float32 on a GPU computes the same sums as the implementation for a CPU. The
torch implementation reads no values back from the GPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.sglang_engine import environment

environment.prepare()

from stages.sglang_engine import cpu_kernels, float32_forms  # noqa: E402

EXPERTS, WIDTH, INNER, CHOSEN = 8, 16, 12, 3


def batch(tokens: int, **options: Any) -> tuple[Any, Any, Any]:
    """The arguments of an experts' function: a method, a layer, and a batch of tokens. Each token is routed to random
    experts.
    """
    torch.manual_seed(0)
    config = SimpleNamespace(activation="silu", apply_router_weight_on_input=False, **options)
    method = SimpleNamespace(moe_runner_config=config)
    layer = SimpleNamespace(
        w13_weight=torch.randn(EXPERTS, 2 * INNER, WIDTH), w2_weight=torch.randn(EXPERTS, WIDTH, INNER)
    )
    experts = torch.stack([torch.randperm(EXPERTS)[:CHOSEN] for _ in range(tokens)]).to(torch.int32)
    topk = (torch.rand(tokens, CHOSEN), experts, None)
    return method, layer, SimpleNamespace(hidden_states=torch.randn(tokens, WIDTH), topk_output=topk)


@pytest.mark.parametrize("chunk", [1, 4 * EXPERTS * 2 * INNER * 4, 2**28])
def test_sums_are_those_of_the_experts_that_a_token_is_routed_to(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32_forms, "_CHUNK_BYTES", chunk)
    method, layer, work = batch(11)
    wanted = cpu_kernels.routed_experts(method, layer, work).hidden_states
    assert torch.allclose(float32_forms.all_experts(method, layer, work).hidden_states, wanted, rtol=1e-4, atol=1e-4)


def test_rows_that_fill_a_captured_step_up_disturb_no_other() -> None:
    method, layer, work = batch(5)
    wanted = float32_forms.all_experts(method, layer, work).hidden_states
    work.topk_output[1][3:] = -1
    found = float32_forms.all_experts(method, layer, work).hidden_states
    assert torch.equal(found[:3], wanted[:3])
    assert not found[3:].any()


def test_nothing_depends_on_values() -> None:
    """Tensors on ``meta`` have no values. So code that reads a value fails, as in the capture of a graph."""
    method, layer, work = batch(5)
    layer = SimpleNamespace(w13_weight=layer.w13_weight.to("meta"), w2_weight=layer.w2_weight.to("meta"))
    weights, experts, _ = work.topk_output
    work = SimpleNamespace(
        hidden_states=work.hidden_states.to("meta"), topk_output=(weights.to("meta"), experts.to("meta"), None)
    )
    assert float32_forms.all_experts(method, layer, work).hidden_states.shape == (5, WIDTH)


def test_experts_of_another_kind_are_refused() -> None:
    method, layer, work = batch(2)
    method.moe_runner_config.activation = "gelu"
    with pytest.raises(NotImplementedError, match="experts that use SiLU"):
        float32_forms.all_experts(method, layer, work)
