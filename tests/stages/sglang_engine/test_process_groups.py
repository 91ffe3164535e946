"""A group of one rank needs no threads, and its collectives still return correct results."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import distributed
from torch.distributed import HashStore

from stages.sglang_engine.process_groups import quiet_single_rank_groups


def threads() -> int:
    """Number of threads of this process. All threads are counted, because a thread gets its name only when it first
    runs.
    """
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def group() -> Iterator[distributed.ProcessGroup]:
    if distributed.is_initialized():
        pytest.fail("an earlier test has left its process groups behind")
    before = threads()
    with quiet_single_rank_groups():
        distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        group = distributed.new_group([0], backend="gloo")
        distributed.monitored_barrier(group)
    assert threads() <= before
    yield group
    distributed.destroy_process_group()


def test_collectives_of_one_rank_leave_its_values(group: distributed.ProcessGroup) -> None:
    values = torch.arange(3.0)
    distributed.all_reduce(values, group=group)
    distributed.broadcast(values, src=0, group=group)
    gathered = [torch.zeros(3)]
    distributed.all_gather(gathered, values, group=group)
    distributed.barrier(group=group)
    assert values.tolist() == gathered[0].tolist() == [0, 1, 2]


def test_afterwards_groups_are_gloos_again(group: distributed.ProcessGroup) -> None:
    before = threads()
    distributed.new_group([0], backend="gloo")
    assert threads() > before
