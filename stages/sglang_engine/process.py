"""Manages the state that engines of one process share: SGLang's process groups, and the active configuration.

SGLang keeps both in process-wide state. If a worker has two engines, as in the colocated layout, each engine has its
own configuration context. The context is active while the engine works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sglang.srt.distributed import parallel_state
from sglang.srt.managers.scheduler import SpawnRanks, load_plugins
from sglang.srt.runtime_context import create_context, use_context

# A call returns a context manager within which the engine's configuration is active.
Configured = Callable[[], AbstractContextManager[Any]]


def configure(server_args: Any, rank: int) -> Configured:
    """Make a new engine's configuration, and leave earlier engines' process groups, so that the new engine can form its
    own groups.

    Args:
        rank: This process's rank, which is also the index of the process's GPU among the visible GPUs.
    """
    load_plugins()
    leave()
    ranks = SpawnRanks(world_rank=rank, dp_rank=None, gpu_id=rank)
    return functools.partial(use_context, create_context(server_args, role="scheduler", ranks=ranks))


def leave() -> None:
    """Leave the process groups of earlier engines, because the groups hold a port. An engine of a single rank works
    without process groups.
    """
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()
