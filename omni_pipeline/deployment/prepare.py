"""Checks a deployment against its checkpoint, and computes whether it fits into the free memory.

`serve`, `config show`, `config check`, `plan` and the search for alternatives all use this module. So they always agree
on whether a deployment fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from omni_pipeline import gpus
from omni_pipeline.contract.stage_memory import Request
from omni_pipeline.deployment import host_memory
from omni_pipeline.deployment.checkpoint import Checkpoint
from omni_pipeline.deployment.memory_plan import Placement, place, refuse, sized
from omni_pipeline.deployment.resolve import Deployment
from omni_pipeline.deployment.stage_checks import check_stages
from omni_pipeline.gpus import Gpu


class FreeMemory(Struct, frozen=True):
    """The memory that a deployment may use.

    Attributes:
        ram: Bytes of the machine's memory that are available; None for no limit.
        used: Bytes of each GPU that other programs already use, by the GPU's index.
    """

    ram: int | None = None
    used: Mapping[int, int] = {}


class Prepared(Struct, frozen=True):
    """A deployment with its checkpoint and its memory placement."""

    deployment: Deployment
    checkpoint: Checkpoint
    placement: Placement

    def refuse(self) -> None:
        """Raise StartupError with the reasons if the deployment does not fit."""
        refuse(self.placement)

    def sized(self) -> Deployment:
        """The deployment with its memory divided between the stages."""
        return sized(self.deployment, self.placement)


def free_memory(own: Sequence[Gpu]) -> FreeMemory:
    """The memory that is free on this machine now.

    Args:
        own: GPUs of this machine. Leave out GPUs that are only described: such GPUs count as empty.

    Raises:
        StartupError: the driver of the GPUs does not answer.
    """
    return FreeMemory(host_memory.available_bytes(), gpus.memory_used(own) if own else {})


def prepare(
    deployment: Deployment,
    checkpoint: Checkpoint,
    free: FreeMemory,
    *,
    request: Request | None = None,
    checked: bool = True,
) -> Prepared:
    """Compute the memory placement of `deployment`. If the deployment does not fit, `Prepared.refuse` on the result
    raises an error.

    Args:
        request: The example request whose size the placement uses; None for the default request.
        checked: Whether to refuse a stage that cannot compute with its weights. `config show` passes False, so that it
            can also show a deployment with such a stage.

    Raises:
        StartupError: a stage cannot compute with its weights.
    """
    if checked:
        check_stages(deployment, checkpoint)
    placement = place(deployment, checkpoint, ram=free.ram, used=free.used, request=request)
    return Prepared(deployment, checkpoint, placement)
