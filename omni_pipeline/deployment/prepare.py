"""Checks a deployment against its checkpoint, adapts it to the CPU, and computes whether it fits into the free memory.

`serve`, `config show`, `config check`, `plan` and the search for alternatives all use this module. So these commands
and the search always agree on whether a deployment fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from omni_pipeline import cpu_detection, gpus
from omni_pipeline.contract.stage_memory import Request
from omni_pipeline.cpu_detection import Cpu
from omni_pipeline.deployment import host_memory
from omni_pipeline.deployment.apply_cpu_choices import with_cpu_choices
from omni_pipeline.deployment.checkpoint import Checkpoint
from omni_pipeline.deployment.host_facts import HostFacts
from omni_pipeline.deployment.memory_plan import Placement, place, refuse, sized
from omni_pipeline.deployment.resolve import Deployment
from omni_pipeline.deployment.stage_checks import check_stages
from omni_pipeline.gpus import Gpu


class FreeMemory(Struct, frozen=True):
    """The memory that a deployment may use, and the CPUs.

    Attributes:
        ram: Available bytes of the main host's RAM; None for no limit.
        used: Bytes of each GPU of the main host that other programs already use, by the GPU's index.
        cpu: The CPU of the main host.
        hosts: The facts of the other hosts, by the host's name.
    """

    ram: int | None = None
    used: Mapping[int, int] = {}
    cpu: Cpu = Cpu()
    hosts: Mapping[str, HostFacts] = {}

    @property
    def cpus(self) -> dict[str, Cpu]:
        """The CPU of each host, by the host's name; the name of the main host is empty."""
        return {"": self.cpu, **{name: facts.cpu for name, facts in self.hosts.items()}}


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


def free_memory(own: Sequence[Gpu], hosts: Mapping[str, HostFacts] | None = None) -> FreeMemory:
    """The memory that is free on this machine now, and its CPU.

    Args:
        own: GPUs of this machine. GPUs of other hosts are ignored. Do not include GPUs that exist only in a
            description, because all their memory counts as free.
        hosts: The facts of the other hosts, by the host's name.

    Raises:
        StartupError: the driver of the GPUs does not answer.
    """
    local = [gpu for gpu in own if not gpu.host]
    used = gpus.memory_used(local) if local else {}
    return FreeMemory(host_memory.available_bytes(), used, cpu_detection.detect(), hosts or {})


def prepare(
    deployment: Deployment,
    checkpoint: Checkpoint,
    free: FreeMemory,
    *,
    request: Request | None = None,
    checked: bool = True,
) -> Prepared:
    """Choose threads and data types on the CPU, and compute the memory placement of `deployment`.

    If the deployment does not fit, `Prepared.refuse` on the result raises an error.

    Args:
        request: The example request whose size the placement uses; None for the default request.
        checked: Whether to refuse a stage that cannot compute with its weights. `config show` passes False, so that it
            can also show a deployment with such a stage.

    Raises:
        StartupError: a stage cannot compute with its weights.
    """
    deployment = with_cpu_choices(deployment, checkpoint, free.cpus)
    if checked:
        check_stages(deployment, checkpoint)
    placement = place(deployment, checkpoint, ram=free.ram, used=free.used, hosts=free.hosts, request=request)
    return Prepared(deployment, checkpoint, placement)
