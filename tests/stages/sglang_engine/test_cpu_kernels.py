"""The fast implementations for a CPU give the same results as plain implementations, for batches of all sizes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from stages.sglang_engine import cpu_kernels, packed_head
from stages.sglang_engine.cpu_kernels import few_experts, grouped_experts, padded_attention, rms_norm
from stages.sglang_engine.packed_head import OmniLogits


def plain_experts(x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor, w13: Any, w2: Any) -> torch.Tensor:
    result = torch.zeros_like(x)
    for row in range(len(x)):
        for weight, expert in zip(weights[row], experts[row], strict=True):
            gate, up = (w13[expert] @ x[row]).chunk(2)
            result[row] += weight * (w2[expert] @ (functional.silu(gate) * up))
    return result


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_experts_are_those_of_a_loop_over_rows(rows: int) -> None:
    torch.manual_seed(rows)
    x, w13, w2 = torch.randn(rows, 32), torch.randn(6, 2 * 16, 32), torch.randn(6, 32, 16)
    weights, experts = torch.randn(rows, 6).softmax(dim=-1).topk(3)
    expected = plain_experts(x, weights, experts, w13, w2)
    torch.testing.assert_close(cpu_kernels.cpu_experts(x, weights, experts, w13, w2), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grouped_experts(x, weights, experts, w13, w2), expected, rtol=1e-4, atol=1e-4)
    if rows == 1:
        torch.testing.assert_close(few_experts(x, weights, experts, w13, w2), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("most", [1, 3000, 1 << 20], ids=["one request", "some requests", "all requests"])
def test_attention_in_parts_is_that_of_each_request_alone(most: int) -> None:
    torch.manual_seed(0)
    lengths, longest = [5, 1, 7, 3, 7], 7
    keys, values = torch.randn(2, 64, 2, 8)
    places = torch.randperm(63)[: len(lengths) * longest].view(len(lengths), longest)
    mask = torch.zeros(len(lengths), 1, 1, longest)
    for row, length in enumerate(lengths):
        mask[row, ..., length:] = -torch.inf
    q = torch.randn(len(lengths), 2, 3, 8)
    result = padded_attention(q, keys, values, places, mask, 0.3, most)
    for row, length in enumerate(lengths):
        own = places[row, :length]
        for head in range(2):
            scores = q[row, head] @ keys[own, head].T * 0.3
            torch.testing.assert_close(result[row, head], scores.softmax(dim=-1) @ values[own, head])


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_norms_are_torchs(scale: float) -> None:
    x, residual = torch.randn(2, 4, 48) * scale
    norm: Any = SimpleNamespace(
        weight=torch.randn(48), hidden_size=48, variance_epsilon=1e-6, variance_size_override=None
    )
    torch.testing.assert_close(rms_norm(norm, x), functional.rms_norm(x, (48,), norm.weight, 1e-6))
    normed, total = rms_norm(norm, x, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, functional.rms_norm(x + residual, (48,), norm.weight, 1e-6))


def bare_logits() -> OmniLogits:
    logits = OmniLogits.__new__(OmniLogits)
    nn.Module.__init__(logits)
    logits.config = SimpleNamespace(vocab_size=1000)
    return logits


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_packed_head_gives_the_same_logits_and_keeps_no_second_copy(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_head, "LEAST_WEIGHTS", 1000)
    head = nn.Linear(24, 1024, bias=False).requires_grad_(False)
    states = torch.randn(rows, 24)
    expected = head(states)[:, :1000]
    logits = bare_logits()
    logits.pack(head)
    assert head.weight.numel() == 0
    torch.testing.assert_close(logits.all_logits(states, head), expected)


def test_a_small_head_or_one_of_another_type_stays_as_it_is() -> None:
    for head in (nn.Linear(8, 8, bias=False), nn.Linear(1024, 1025, bias=False, dtype=torch.bfloat16)):
        before = head.weight.clone()
        bare_logits().pack(head)
        assert torch.equal(head.weight, before)
