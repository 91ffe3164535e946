"""Manages the state that engines of one process share: SGLang's process groups, and the active configuration.

SGLang stores this state in global variables. But a worker may have two engines, for example in the colocated layout. So
each engine has its own configuration context, which is active while the engine works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sglang.srt.distributed import parallel_state
from sglang.srt.managers.scheduler import SpawnRanks, load_plugins
from sglang.srt.runtime_context import create_context, use_context

# A function that returns a context manager. The engine's configuration is active within this context.
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
    """Leave the process groups of earlier engines, because the groups occupy a port. An engine of a single rank works
    without process groups.
    """
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()
