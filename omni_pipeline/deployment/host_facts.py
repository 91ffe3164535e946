"""The hardware of one host, as far as decisions need it. A host that joins sends its facts to the main process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct, structs

from omni_pipeline import cpu_detection, gpus
from omni_pipeline.cpu_detection import Cpu
from omni_pipeline.deployment import host_memory
from omni_pipeline.gpus import Gpu


class HostFacts(Struct, frozen=True):
    """The hardware of one host. All values are plain, so msgpack can encode them.

    Attributes:
        gpus: The GPUs that the server may use on the host. Their indices count from 0.
        ram: Available bytes of the host's RAM; None for no limit.
        used: Bytes of each GPU that other programs already use, by the index of the GPU in `gpus`.
        cpu: The CPU.
    """

    gpus: tuple[Gpu, ...] = ()
    ram: int | None = None
    used: dict[int, int] = {}
    cpu: Cpu = Cpu()


class Machine(Struct, frozen=True):
    """A host of a deployment, for the decisions about it.

    Attributes:
        host: The host's name; empty for the main host.
        gpus: Its GPUs, with indices among the GPUs of all hosts.
        unknown: Whether the host has not joined and is not described, so its GPUs are unknown.
    """

    host: str
    gpus: tuple[Gpu, ...]
    unknown: bool = False

    @property
    def of(self) -> str:
        """The text that messages add after the number of a GPU: `` of b`` for the host b, and no text for the main
        host.
        """
        return f" of {self.host}" if self.host else ""


def detect_host(*, with_gpus: bool = True) -> HostFacts:
    """The facts of this machine, now.

    Args:
        with_gpus: Whether to look for GPUs. If false, the driver is not queried.

    Raises:
        StartupError: the machine has GPUs but the driver does not answer, or ``CUDA_VISIBLE_DEVICES`` contains a GPU
            that does not exist.
    """
    own = gpus.detect() if with_gpus else ()
    return HostFacts(own, host_memory.available_bytes(), gpus.memory_used(own) if own else {}, cpu_detection.detect())


def machines_of(hosts: Iterable[str], main: Sequence[Gpu], remote: Mapping[str, HostFacts]) -> dict[str, Machine]:
    """The main host and the hosts in `hosts`, by name. Each GPU gets an index that no other GPU of the result has.

    Args:
        main: The GPUs of the main host.
        remote: The facts of hosts, by the host's name. A host without facts is unknown.
    """
    machines = {"": Machine("", tuple(main))}
    offset = len(main)
    for name in hosts:
        facts = remote.get(name, HostFacts())
        own = (structs.replace(gpu, index=offset + gpu.index, host=name, offset=offset) for gpu in facts.gpus)
        machines[name] = Machine(name, tuple(own), name not in remote)
        offset += len(facts.gpus)
    return machines
