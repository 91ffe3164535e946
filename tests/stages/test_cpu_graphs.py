"""A graph on a CPU behaves like a CUDA graph: it repeats its recorded operations on the memory that they used when they
were recorded.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stages.cpu_graphs import GraphPool


def test_a_replay_reads_what_the_inputs_hold_then() -> None:
    x = torch.zeros(3, 2)
    replay = GraphPool().record(lambda x: (x[1:].t() @ x[1:] + 1).relu(), (x,))
    x.copy_(torch.arange(6.0).view(3, 2))
    torch.testing.assert_close(replay(), x[1:].t() @ x[1:] + 1)


@torch.inference_mode()
def test_so_it_does_in_inference_mode_where_operations_come_whole() -> None:
    x, weight = torch.zeros(2, 3), torch.ones(4, 3)
    replay = GraphPool().record(lambda x: torch.nn.functional.linear(x, weight).reshape(4, 2).contiguous(), (x,))
    x.fill_(2)
    assert torch.equal(replay(), torch.full((4, 2), 6.0))


def test_what_it_writes_in_place_is_written_again() -> None:
    table, slots, row = torch.zeros(4, 2), torch.tensor([1]), torch.ones(1, 2)
    replay = GraphPool().record(lambda: table.index_copy_(0, slots, row * 2))
    table.zero_()
    slots.fill_(3)
    replay()
    assert table.sum(dim=1).tolist() == [0, 0, 0, 4]


def test_results_are_the_same_tensors_each_time() -> None:
    x = torch.zeros(2)
    replay = GraphPool().record(lambda x: {"doubled": x * 2}["doubled"], (x,))
    first = replay()
    x.fill_(4)
    assert replay() is first
    assert first.tolist() == [8, 8]


def test_what_python_computed_stays_as_it_was() -> None:
    state = {"factor": 2}
    replay = GraphPool().record(lambda x: x * state["factor"], (torch.ones(1),))
    state["factor"] = 3
    assert replay().tolist() == [2]


def test_another_graph_of_the_pool_spoils_what_one_gave() -> None:
    pool, x = GraphPool(), torch.ones(2)
    one, other = pool.record(lambda x: (x + 1, x.long()), (x,)), pool.record(lambda x: x + 2, (x,))
    floats, integers = one()
    assert (floats.tolist(), integers.tolist()) == ([2, 2], [1, 1])
    assert other().tolist() == [3, 3]
    assert floats.isnan().all()
    assert (integers == torch.iinfo(torch.int64).max).all()
    assert one()[0].tolist() == [2, 2]


@pytest.mark.parametrize("read", [lambda x: x * x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0]])
def test_what_a_gpu_would_have_to_wait_for_is_refused(read: Any) -> None:
    with pytest.raises(RuntimeError, match="which no graph can do"):
        GraphPool().record(read, (torch.ones(2),))
