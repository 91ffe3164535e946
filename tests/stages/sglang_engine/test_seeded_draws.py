"""If ids are drawn digit by digit, each id is drawn with its probability, and rounding hardly ever changes a draw."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stages.sampling_filters import seed_key
from stages.sglang_engine.seeded_draws import _draw_on_device, count_digits, draw_ids, draw_numbers

LAST = 1 - 2**-53


def numbers(seeds: range, vocabulary: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(draw_numbers(seed_key(seed), 5, vocabulary)) for seed in seeds])


def probabilities(rows: int, vocabulary: int, scale: float = 1.0) -> torch.Tensor:
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * scale
    return torch.softmax(logits, dim=-1, dtype=torch.float64)


def test_a_vocabulary_has_as_many_digits_as_its_largest_id() -> None:
    assert [count_digits(vocabulary) for vocabulary in (1, 16, 17, 256, 257, 3072, 152_064)] == [1, 1, 2, 2, 3, 3, 5]


def test_numbers_depend_on_seed_and_place_and_on_nothing_else() -> None:
    first = draw_numbers(seed_key(1), 3, 3072)
    assert first.tolist() == draw_numbers(seed_key(1), 3, 3072).tolist()
    others = [draw_numbers(seed_key(2), 3, 3072), draw_numbers(seed_key(1), 4, 3072)]
    assert len({number for each in (first, *others) for number in each.tolist()}) == 9
    assert all(0 <= number < 1 for number in first)


@pytest.mark.parametrize("vocabulary", [20, 300])
def test_ids_follow_the_probabilities(vocabulary: int) -> None:
    """A chi-square test. The limit is more than four standard deviations above the mean."""
    draws = 40_000
    given = probabilities(1, vocabulary)
    ids = draw_ids(given.expand(draws, -1), numbers(range(draws), vocabulary))
    counts = torch.bincount(ids, minlength=vocabulary)
    assert len(counts) == vocabulary
    chi_square = ((counts - draws * given[0]) ** 2 / (draws * given[0])).sum().item()
    freedom = vocabulary - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 10


@pytest.mark.parametrize("vocabulary", [1, 16, 17, 300, 3072, 20_000])
def test_the_gpus_operations_draw_the_same_ids(vocabulary: int) -> None:
    given = probabilities(64, vocabulary, 3.0)
    given[:, torch.randperm(vocabulary, generator=torch.Generator().manual_seed(1))[: vocabulary // 3]] = 0
    drawn = numbers(range(64), vocabulary)
    drawn[0], drawn[1] = 0.0, LAST
    assert _draw_on_device(given, drawn).tolist() == draw_ids(given, drawn).tolist()


@pytest.mark.parametrize("draw", [draw_ids, _draw_on_device])
@pytest.mark.parametrize("number", [0.0, 0.5, LAST])
def test_an_id_without_probability_is_never_drawn(draw: Callable[..., torch.Tensor], number: float) -> None:
    only = torch.zeros(3, 3072, dtype=torch.float64)
    only[0, 0], only[1, 3071], only[2, 1234] = 1e-300, 0.1, 0.7
    assert draw(only, torch.full((3, 3), number, dtype=torch.float64)).tolist() == [0, 3071, 1234]


def test_a_row_is_drawn_alike_alone_and_among_others() -> None:
    given, drawn = probabilities(7, 3072), numbers(range(7), 3072)
    together = draw_ids(given, drawn)
    assert [int(draw_ids(given[row : row + 1], drawn[row : row + 1])) for row in range(7)] == together.tolist()


def test_errors_of_rounding_change_far_fewer_draws_than_with_one_number() -> None:
    """The common way to draw is to invert the CDF of all ids with one random number."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(2000, 3072, generator=random, dtype=torch.float64)
    exact, rounded = (
        torch.softmax(logits + error * torch.randn(logits.shape, generator=random, dtype=torch.float64), dim=-1)
        for error in (0.0, 1e-3)
    )
    drawn = numbers(range(2000), 3072)
    by_digits = (draw_ids(exact, drawn) != draw_ids(rounded, drawn)).sum()
    first, second = (torch.searchsorted(each.cumsum(dim=-1), drawn[:, :1].contiguous()) for each in (exact, rounded))
    by_one_number = (first != second).sum()
    assert by_one_number > 30
    assert by_digits < by_one_number / 5
