"""The compiled parts of a decoder layer compute what torch computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from stages import decoder_kernels

# The two implementations round differently, and sum in different orders.
TOLERANCE = {"rtol": 2e-5, "atol": 1e-5}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 3, 4, 6, 31, 32, 50])
@pytest.mark.parametrize(("outputs", "width"), [(4, 8), (7, 33), (192, 96), (1, 5)])
def test_project(rows: int, outputs: int, width: int) -> None:
    x, weight = random(rows, width), random(outputs, width, seed=1)
    result = torch.full((rows, outputs), torch.nan)
    decoder_kernels.project(x.numpy(), weight.numpy(), result.numpy())
    torch.testing.assert_close(result, functional.linear(x, weight), **TOLERANCE)


@pytest.mark.parametrize("width", [1, 16, 100])
def test_normalise(width: int) -> None:
    x, weight, result = random(5, width) * 3, random(width, seed=1), torch.empty(5, width)
    decoder_kernels.normalise(x.numpy(), weight.numpy(), 1e-6, result.numpy())
    torch.testing.assert_close(result, functional.rms_norm(x, (width,), weight, 1e-6), **TOLERANCE)


@pytest.mark.parametrize("width", [2, 16, 48, 128])
def test_normalise_and_rotate(width: int) -> None:
    head, weight, angles = random(width), random(width, seed=1), random(width // 2, seed=2).repeat(2) * 10
    normed = functional.rms_norm(head, (width,), weight, 1e-6)
    left, right = normed.chunk(2)
    expected = normed * angles.cos() + torch.cat((-right, left)) * angles.sin()
    decoder_kernels.normalise_and_rotate(head.numpy(), weight.numpy(), 1e-6, angles.cos().numpy(), angles.sin().numpy())
    torch.testing.assert_close(head, expected, **TOLERANCE)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (8, 1), (3, 3)])
@pytest.mark.parametrize("tokens", [1, 2, 5, 64, 130])
def test_attend(heads: int, kv_heads: int, tokens: int) -> None:
    keys, values, query = random(200, kv_heads, 24) * 3, random(200, kv_heads, 24, seed=1), random(heads, 24, seed=2)
    places = torch.randperm(200, generator=torch.Generator().manual_seed(3))[:tokens]
    expected = functional.scaled_dot_product_attention(
        query[:, None], keys[places].transpose(0, 1), values[places].transpose(0, 1), scale=0.7, enable_gqa=True
    )
    result, scores = torch.full((heads, 24), torch.nan), np.empty(tokens, np.float32)
    decoder_kernels.attend(
        query.numpy(), keys.numpy(), values.numpy(), places.int().numpy(), 0.7, scores, result.numpy()
    )
    torch.testing.assert_close(result, expected[:, 0], **TOLERANCE)


def test_attend_with_scores_beyond_the_range_of_the_exponential() -> None:
    keys, values, query = random(8, 1, 4) * 1e4, random(8, 1, 4, seed=1), random(2, 4, seed=2)
    expected = functional.scaled_dot_product_attention(
        query[:, None], keys.transpose(0, 1), values.transpose(0, 1), scale=1.0, enable_gqa=True
    )
    result = torch.empty(2, 4)
    places, scores = np.arange(8, dtype=np.int32), np.empty(8, np.float32)
    decoder_kernels.attend(query.numpy(), keys.numpy(), values.numpy(), places, 1.0, scores, result.numpy())
    torch.testing.assert_close(result, expected[:, 0], **TOLERANCE)


def test_the_exponential_is_as_exact_as_the_librarys() -> None:
    """With weights of one, the gate is x · sigmoid(x). So the relative error of the gate is the relative error of the
    exponential.
    """
    x = torch.linspace(-80, 20, 4000)
    result = torch.empty(1, len(x))
    decoder_kernels.gate(torch.cat((x, torch.ones_like(x)))[None].numpy(), result.numpy())
    exact = x.double() * x.double().sigmoid()
    assert ((result[0].double() - exact) / exact).abs().max() < 4e-7


def test_gate() -> None:
    x, result = torch.linspace(-120, 120, 2 * 3 * 50).view(3, 100), torch.empty(3, 50)
    decoder_kernels.gate(x.numpy(), result.numpy())
    left, right = x.chunk(2, dim=1)
    torch.testing.assert_close(result, functional.silu(left) * right, **TOLERANCE)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(("experts", "per_row"), [(4, 2), (9, 3), (32, 8), (2, 2)])
def test_route(experts: int, per_row: int, renormalise: bool) -> None:
    logits = random(6, experts) * 4
    expected, chosen = logits.softmax(-1).topk(per_row)
    if renormalise:
        expected = expected / expected.sum(-1, keepdim=True)
    ids, weights = torch.empty(6, per_row, dtype=torch.int64), torch.empty(6, per_row)
    decoder_kernels.route(logits.numpy(), ids.numpy(), weights.numpy(), renormalise)
    assert ids.tolist() == chosen.tolist()
    torch.testing.assert_close(weights, expected, **TOLERANCE)


@pytest.mark.parametrize("rows", [1, 2, 40, 90])
def test_add_experts(rows: int) -> None:
    experts, width, hidden = 5, 12, 20
    x, before = random(rows, hidden), random(rows, hidden, seed=1)
    gate_up, down = random(experts, 2 * width, hidden, seed=2) * 0.3, random(experts, hidden, width, seed=3) * 0.3
    weights, chosen = random(rows, experts, seed=4).softmax(-1).topk(2)
    expected = before.clone()
    for row in range(rows):
        for weight, expert in zip(weights[row], chosen[row], strict=True):
            left, right = (gate_up[expert] @ x[row]).chunk(2)
            expected[row] += weight * (down[expert] @ (functional.silu(left) * right))
    decoder_kernels.add_experts(
        x.numpy(), chosen.numpy(), weights.contiguous().numpy(), gate_up.numpy(), down.numpy(), before.numpy()
    )
    torch.testing.assert_close(before, expected, **TOLERANCE)
