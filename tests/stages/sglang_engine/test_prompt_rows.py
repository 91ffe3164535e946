"""Every piece of a sequence gets the rows and positions that belong to it."""

from __future__ import annotations

import torch

from stages.sglang_engine.prompt_rows import PromptRows, Stretch, gather

CPU = torch.device("cpu")


def rows_with_media() -> PromptRows:
    """The rows of ten tokens. Rows 2, 3, 4 and 7 belong to media, and rows 3, 4 and 7 of them are visual. There are two
    deepstack layers.
    """
    return PromptRows(
        ids=torch.arange(10),
        positions=torch.arange(30, dtype=torch.float32).reshape(3, 10) / 2,
        delta=-1.5,
        media_rows=torch.tensor([2, 3, 4, 7]),
        media_embeds=torch.tensor([[2.0], [3.0], [4.0], [7.0]]),
        visual_rows=torch.tensor([3, 4, 7]),
        deepstack=torch.tensor([[[30.0], [40.0], [70.0]], [[31.0], [41.0], [71.0]]]),
    )


def plain_rows() -> PromptRows:
    return PromptRows(ids=torch.arange(5), positions=None, delta=0.0)


def test_a_whole_prompt_takes_everything() -> None:
    extras = gather([Stretch(rows_with_media(), slot=3, start=0, end=10)], CPU, torch.float32)
    assert extras.media_index.tolist() == [2, 3, 4, 7]
    assert extras.visual_index.tolist() == [3, 4, 7]
    assert extras.positions.tolist() == rows_with_media().positions.tolist()
    assert (extras.slots.tolist(), extras.deltas.tolist()) == ([3], [-1.5])


def test_a_chunk_takes_its_share_with_places_counted_from_its_start() -> None:
    extras = gather([Stretch(rows_with_media(), slot=0, start=3, end=5)], CPU, torch.float32)
    assert extras.media_index.tolist() == [0, 1]
    assert extras.media_embeds.flatten().tolist() == [3.0, 4.0]
    assert extras.deepstack.flatten().tolist() == [30.0, 40.0, 31.0, 41.0]
    assert extras.positions[0].tolist() == [1.5, 2.0]


def test_a_chunk_without_media_takes_none() -> None:
    extras = gather([Stretch(rows_with_media(), slot=0, start=8, end=10)], CPU, torch.float32)
    assert extras.media_index is None
    assert extras.visual_index is None


def test_plain_positions_are_the_indices() -> None:
    extras = gather([Stretch(plain_rows(), slot=0, start=2, end=5)], CPU, torch.float32)
    assert extras.positions.tolist() == [[2.0, 3.0, 4.0]] * 3


def test_rows_are_made_only_for_the_part_of_the_prompt_that_is_computed() -> None:
    made = []

    def make(start: int, end: int) -> torch.Tensor:
        made.append((start, end))
        return torch.arange(start, end, dtype=torch.float32)[:, None]

    rows = PromptRows(torch.arange(10), None, 0.0, make=make, generated=[torch.tensor([20.0]), torch.tensor([21.0])])

    def part(start: int, end: int) -> list[float]:
        extras = gather([Stretch(plain_rows(), 1, 0, 2), Stretch(rows, 0, start, end)], CPU, torch.float32)
        assert extras.media_index.tolist() == [*range(2, 2 + end - start)]
        return extras.media_embeds.flatten().tolist()

    assert part(4, 7) == [4.0, 5.0, 6.0]
    assert part(8, 12) == [8.0, 9.0, 20.0, 21.0]
    assert made == [(4, 7), (8, 10)]
    assert part(10, 12) == [20.0, 21.0]
    assert part(11, 12) == [21.0]
    assert made == [(4, 7), (8, 10)]


def test_generated_tokens_are_positioned_after_the_prompt() -> None:
    """A request that has lost its KV memory is prefilled again. This prefill includes the generated tokens."""
    extras = gather([Stretch(rows_with_media(), slot=0, start=9, end=12)], CPU, torch.float32)
    assert extras.positions[1].tolist() == [9.5, 8.5, 9.5]
    extras = gather([Stretch(rows_with_media(), slot=0, start=11, end=12)], CPU, torch.float32)
    assert extras.positions.tolist() == [[9.5]] * 3


def test_a_batch_joins_its_requests_one_after_the_other() -> None:
    extras = gather(
        [
            Stretch(plain_rows(), slot=1, start=0, end=5),
            Stretch(rows_with_media(), slot=2, start=4, end=8),
            Stretch(rows_with_media(), slot=5, start=0, end=3),
        ],
        CPU,
        torch.float32,
    )
    assert extras.media_index.tolist() == [5, 8, 11]
    assert extras.media_embeds.flatten().tolist() == [4.0, 7.0, 2.0]
    assert extras.visual_index.tolist() == [5, 8]
    assert extras.deepstack[1].flatten().tolist() == [41.0, 71.0]
    assert extras.positions.shape == (3, 12)
    assert extras.slots.tolist() == [1, 2, 5]
