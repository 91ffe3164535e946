"""Makes process groups with a single rank, without the threads that would wait for other ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed
from torch._C._distributed_c10d import FakeProcessGroup
from torch.distributed import Backend

_GLOO = Backend.GLOO.upper()


@contextmanager
def quiet_single_rank_groups() -> Iterator[None]:
    """Inside this context, a new Gloo group of one rank becomes a group that never communicates.

    Each real group has a thread that wakes up a hundred times a second. SGLang makes nine groups, and their threads
    took 3 % of a core in an idle worker. Groups of several ranks still use Gloo. Torch's monitored barrier works only
    with real Gloo groups. In this context, a single rank skips the barrier, because there is no other rank to wait for.
    """
    Backend._ensure_backend_registered(Backend.GLOO)  # otherwise torch imports this module at its first use
    gloo, monitored_barrier = Backend._plugins[_GLOO], distributed.monitored_barrier

    def create(options: Any, backend_options: Any) -> Any:
        if options.group_size > 1:
            return gloo.creator_fn(options, backend_options)
        return FakeProcessGroup._create_internal(options.group_rank, options.group_size)

    def barrier(group: Any = None, *arguments: Any, **options: Any) -> None:
        if distributed.get_world_size(group) > 1:
            monitored_barrier(group, *arguments, **options)

    Backend._plugins[_GLOO], distributed.monitored_barrier = gloo._replace(creator_fn=create), barrier
    try:
        yield
    finally:
        Backend._plugins[_GLOO], distributed.monitored_barrier = gloo, monitored_barrier
