"""Sampling gives the same probabilities as the reference's logits processors. The same seed gives the same tokens in
any batch.
"""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec import structs
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stages.messages import ReasoningForm, Sampling
from stages.sglang_engine.sampler import OmniSampler, SamplingState, draw, filtered_probabilities

VOCAB = 300


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def state(params: Sampling, prompt: list[int] | None = None, output: list[int] | None = None, **more: Any) -> Any:
    return SamplingState(
        params,
        prompt_ids=torch.tensor(prompt or [], dtype=torch.int64),
        output_ids=array("q", output or []),
        eos_ids=[7],
        **more,
    )


def sample(rows: list[SamplingState], values: torch.Tensor) -> list[int]:
    """Runs one step of the sampler without an engine. Returns the sampled ids."""
    sampler = OmniSampler.__new__(OmniSampler)
    torch.nn.Module.__init__(sampler)
    sampler.rows = rows
    return sampler.forward(SimpleNamespace(next_token_logits=values), None, False, [], [], torch.empty(0)).tolist()


WARPERS = [
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_k=50),
    Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=0.9, top_k=20, top_p=0.95),
    Sampling(temperature=1.0, min_p=0.1),
    Sampling(temperature=1.5, top_k=100, top_p=0.9, min_p=0.05),
    Sampling(temperature=1.0, top_p=1e-9),
    Sampling(temperature=1.0, top_k=10_000),
]


def reference_probabilities(params: Sampling, values: torch.Tensor) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    return torch.softmax(warpers(torch.zeros(len(values), 1, dtype=torch.int64), values.clone()), dim=-1)


@pytest.mark.parametrize("params", WARPERS)
def test_filters_leave_what_the_reference_leaves(params: Sampling) -> None:
    values = logits(5)
    ours = filtered_probabilities(values, [params] * 5)
    ours = ours / ours.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(ours.float(), reference_probabilities(params, values), rtol=1e-4, atol=1e-7)


def test_each_row_of_a_batch_is_filtered_by_its_own_parameters() -> None:
    values = logits(len(WARPERS))
    together = filtered_probabilities(values, WARPERS)
    for row, params in enumerate(WARPERS):
        alone = filtered_probabilities(values[row : row + 1], [params])
        torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize("penalty", [1.05, 1.7, 0.6])
def test_repetition_penalty_counts_prompt_and_output_like_the_reference(penalty: float) -> None:
    prompt, output = [1, 2, 3, 3, 250], [4, 4, 299]
    values = logits(1)
    ours = values[0].clone()
    state(Sampling(repetition_penalty=penalty), prompt, output).adjust(ours)
    seen = torch.tensor([prompt + output])
    torch.testing.assert_close(ours[None], RepetitionPenaltyLogitsProcessor(penalty)(seen, values.clone()))


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    values = torch.zeros(VOCAB)
    state(Sampling(presence_penalty=0.5, frequency_penalty=0.25), [1, 1], [2, 3, 3]).adjust(values)
    assert values[[1, 2, 3]].tolist() == [0.0, -0.75, -1.0]


def test_penalties_follow_the_output_as_it_grows() -> None:
    row = state(Sampling(frequency_penalty=1.0))
    for expected in (0.0, -1.0, -2.0):
        values = torch.zeros(VOCAB)
        row.adjust(values)
        assert values[9].item() == expected
        row.output_ids.append(9)


def test_logit_bias_moves_single_ids() -> None:
    values = torch.zeros(VOCAB)
    state(Sampling(logit_bias={5: 2.5, 6: -100.0})).adjust(values)
    assert values[[4, 5, 6]].tolist() == [0.0, 2.5, -100.0]


def test_end_of_turn_is_banned_until_min_tokens() -> None:
    params = Sampling(min_tokens=2)
    for output, allowed in (([], False), ([1], False), ([1, 1], True)):
        values = torch.zeros(VOCAB)
        row = state(params, output=output)
        if not row.plain:
            row.adjust(values)
        assert (values[7].item() == 0.0) is allowed


def test_suppressed_ids_are_never_picked() -> None:
    values = logits(1)
    best = int(values.argmax())
    suppressed = torch.zeros(VOCAB, dtype=torch.bool)
    suppressed[best] = True
    assert sample([state(Sampling(), suppressed=suppressed)], values.clone()) != [best]


def test_greedy_rows_take_the_largest_logit_beside_sampled_ones() -> None:
    values = logits(3)
    rows = [state(Sampling()), state(Sampling(temperature=1.0, seed=1)), state(Sampling(temperature=2.0, top_k=1))]
    picks = sample(rows, values.clone())
    assert [picks[0], picks[2]] == values.argmax(dim=-1)[[0, 2]].tolist()


@pytest.mark.parametrize("temperature", [1e-6, 1e-7, 1e-300])
def test_temperature_near_zero_is_greedy(temperature: float) -> None:
    values = logits(1)
    assert sample([state(Sampling(temperature=temperature, seed=1))], values.clone()) == values.argmax(dim=-1).tolist()


def test_a_seed_gives_the_same_token_alone_and_in_any_batch() -> None:
    values = logits(4)
    params = [Sampling(temperature=1.0, seed=seed, top_p=0.9) for seed in (11, 12, 13, 14)]
    together = sample([state(p) for p in params], values.clone())
    for row in range(4):
        assert sample([state(params[row])], values[row : row + 1].clone()) == [together[row]]


def test_without_a_seed_two_requests_differ() -> None:
    values = torch.zeros(1, VOCAB)
    picks = {sample([state(Sampling(temperature=1.0))], values.clone())[0] for _ in range(20)}
    assert len(picks) > 5


def test_negative_and_large_seeds_are_seeds_too() -> None:
    values = torch.zeros(1, VOCAB)
    seeds = (-1, -(2**63), 2**63 - 1, 0)
    picks = [sample([state(Sampling(temperature=1.0, seed=seed))], values.clone()) for seed in seeds]
    again = [sample([state(Sampling(temperature=1.0, seed=seed))], values.clone()) for seed in seeds]
    assert picks == again
    assert len({tuple(pick) for pick in picks}) > 1


def test_picks_over_many_seeds_follow_the_probabilities() -> None:
    """A chi-square test over 20 ids and 4000 seeds. The limit 43.8 is the 0.999 quantile for 19 degrees of freedom."""
    values = logits(1, seed=3)[:, :20]
    expected = torch.softmax(values, dim=-1)[0]
    draws = 4000
    rows = [state(Sampling(temperature=1.0, seed=seed)) for seed in range(draws)]
    counts = torch.bincount(draw(values.expand(draws, -1), rows), minlength=20)
    chi_square = ((counts - draws * expected) ** 2 / (draws * expected)).sum().item()
    assert chi_square < 43.8


def test_logprobs_are_the_models_own_whatever_is_sampled() -> None:
    values = logits(2)
    rows = [
        state(Sampling(repetition_penalty=2.0), [1, 2, 3], logprobs=3),
        state(Sampling(temperature=0.1, seed=1), logprobs=0),
    ]
    picks = sample(rows, values.clone())
    truth = torch.log_softmax(values, dim=-1)
    for index, row in enumerate(rows):
        assert row.picked is not None
        logprob, alternatives = row.picked
        assert logprob == pytest.approx(truth[index, picks[index]].item(), abs=1e-5)
        best = torch.topk(truth[index], row.logprobs)
        assert [alternative.id for alternative in alternatives] == best.indices.tolist()


THINK = ReasoningForm("<think>", "</think>", 100, 101)


@pytest.mark.parametrize(
    ("output", "begun", "forced"),
    [
        ([], False, False),
        ([100], False, False),
        ([100, 1], False, False),
        ([100, 1, 2], False, True),
        ([100, 1, 2, 101], False, False),
        ([100, 1, 101, 4, 5, 6], False, False),
        ([5, 100, 1, 2, 3], False, False),
        ([1], True, False),
        ([1, 2], True, True),
    ],
)
def test_reasoning_is_closed_after_its_budget(output: list[int], begun: bool, forced: bool) -> None:
    values = logits(1)
    form = structs.replace(THINK, begun=begun)
    params = Sampling(reasoning=form, thinking_budget=2, logit_bias={101: -100.0}, repetition_penalty=1.3)
    free = structs.replace(params, thinking_budget=None)
    expected = [101] if forced else sample([state(free, output=output)], values.clone())
    assert sample([state(params, output=output)], values.clone()) == expected
    drawn = structs.replace(params, temperature=1.0, seed=3)
    if forced:
        assert sample([state(drawn, output=output)], values.clone()) == [101]


def test_a_budget_of_zero_closes_reasoning_at_once() -> None:
    params = Sampling(reasoning=THINK, thinking_budget=0)
    assert sample([state(params, output=[100])], logits(1)) == [101]


def test_a_budget_forces_only_its_own_row() -> None:
    values = logits(2)
    free = sample([state(Sampling()), state(Sampling())], values.clone())
    limited = state(Sampling(reasoning=THINK, thinking_budget=1), output=[100, 1])
    assert sample([limited, state(Sampling())], values.clone()) == [101, free[1]]
