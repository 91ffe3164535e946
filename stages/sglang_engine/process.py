"""What engines of one process share: SGLang's process groups, and which engine's configuration is in force.

SGLang keeps both in process-wide state. With two engines in one worker (the colocated layout), each has a configuration
context of its own, which is in force while it works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sglang.srt.distributed import parallel_state
from sglang.srt.managers.scheduler import SpawnRanks, load_plugins
from sglang.srt.runtime_context import create_context, use_context

# A call gives a context manager in which the engine's configuration is in force.
Configured = Callable[[], AbstractContextManager[Any]]


def configure(server_args: Any, rank: int) -> Configured:
    """Make a new engine's configuration, and room for its process groups.

    Args:
        rank: Of this process, and the index of its GPU among those it sees.
    """
    load_plugins()
    leave()
    ranks = SpawnRanks(world_rank=rank, dp_rank=None, gpu_id=rank)
    return functools.partial(use_context, create_context(server_args, role="scheduler", ranks=ranks))


def leave() -> None:
    """Leave the process groups of earlier engines, which hold a port. A single rank does not need them to go on."""
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()
