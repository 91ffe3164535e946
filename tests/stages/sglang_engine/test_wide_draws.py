"""The filters for one wide row of logits give the same result as `sampling_filters`, which sorts the whole row."""

from __future__ import annotations

import pytest
import torch

from stages.messages import Sampling
from stages.sampling_filters import Filters
from stages.sglang_engine import wide_draws
from stages.sglang_engine.sampler import largest
from stages.sglang_engine.wide_draws import row_probabilities

VOCABULARY = 20_032

FILTERS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(temperature=1.0, top_p=1e-9),
    Sampling(temperature=1.3, top_p=0.9999999),
    Sampling(temperature=1.0, top_k=50),
    Sampling(temperature=1.0, top_k=50, top_p=0.5),
    Sampling(temperature=1.0, top_k=VOCABULARY, top_p=0.8),
    Sampling(temperature=1.0, min_p=0.02),
    Sampling(temperature=0.9, top_p=0.95, min_p=0.3),
    Sampling(temperature=0.9, top_k=200, top_p=0.9, min_p=0.05),
]


def rows() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    peaked = torch.randn(VOCABULARY, generator=random) * 4
    flat = torch.randn(VOCABULARY, generator=random) * 0.05
    tied = torch.randint(0, 5, (VOCABULARY,), generator=random).float()
    banned = peaked.clone()
    banned[torch.randperm(VOCABULARY, generator=random)[: VOCABULARY // 2]] = -torch.inf
    far = torch.full((VOCABULARY,), -500.0)
    far[[7, 9000]] = torch.tensor([3.0, 2.0])
    equal = torch.zeros(VOCABULARY)
    return {"peaked": peaked, "flat": flat, "tied": tied, "banned": banned, "far": far, "equal": equal}


@pytest.mark.parametrize("kind", rows())
@pytest.mark.parametrize("params", FILTERS)
def test_probabilities_are_those_of_the_sorted_row(params: Sampling, kind: str) -> None:
    logits = rows()[kind]
    [sorted_] = Filters.of([params], VOCABULARY, "cpu").probabilities(logits[None])
    filtered = row_probabilities(logits, params)
    assert (filtered == 0).equal(sorted_ == 0)
    torch.testing.assert_close(filtered, sorted_, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["peaked", "flat", "tied", "banned", "far"])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.99])
def test_the_nucleus_is_the_smallest_set_that_has_the_mass(top_p: float, kind: str) -> None:
    logits = rows()[kind]
    mass = torch.softmax(logits, dim=-1, dtype=torch.float64)
    least = wide_draws._nucleus(logits, top_p)
    assert least in logits
    assert mass[logits >= least].sum() >= top_p > mass[logits > least].sum()


def test_the_largest_logit_is_the_one_that_argmax_finds() -> None:
    logits = torch.stack(list(rows().values()))
    logits = torch.cat((logits, torch.full((1, VOCABULARY), -torch.inf), logits[:1].flip(1)))
    logits[0, [100, 101, 13_000]] = 99.0
    assert largest(logits).tolist() == logits.argmax(dim=-1).tolist()
    assert largest(logits)[0] == 100
