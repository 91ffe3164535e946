"""Describes a machine with GPUs: its cards, their MIG instances, and the devices that a process can use."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from msgspec import Struct

MIB = 1024**2

# The share of the memory that the driver keeps for itself. The memory that the driver reports includes this share. The
# memory that CUDA reports does not include it.
_RESERVED = 0.0055


class Card(Struct, frozen=True):
    """A kind of GPU.

    Attributes:
        name: The driver's name for the card.
        memory_mib: Memory as the driver reports it (``nvidia-smi --query-gpu=memory.total``).
        multiprocessors: Number of multiprocessors of the whole card.
        capability: Compute capability.
        instances: MIG profiles that the card is divided into, such as ``("3g.40gb", "3g.40gb")``; empty if MIG is off.
    """

    name: str
    memory_mib: int
    multiprocessors: int
    capability: tuple[int, int] = (9, 0)
    instances: tuple[str, ...] = ()


H20 = Card("NVIDIA H20", 97871, 78)
H100 = Card("NVIDIA H100 80GB HBM3", 81559, 132)
H200 = Card("NVIDIA H200", 143771, 132)


class FakeDevice(Struct, frozen=True):
    """A GPU or a MIG instance, as CUDA sees it.

    Attributes:
        card: Index of the card, in the order of the PCI bus.
        uuid: UUID of the card, or of the MIG instance if the device is a MIG instance.
    """

    card: int
    name: str
    uuid: str
    memory: int
    multiprocessors: int
    capability: tuple[int, int]

    @property
    def usable(self) -> int:
        """Bytes of memory as CUDA reports them."""
        return int(self.memory * (1 - _RESERVED))


class Machine(Struct, frozen=True):
    """A machine's cards, in the order of the PCI bus.

    Attributes:
        used_mib: For each card, the memory that is already in use.
    """

    cards: tuple[Card, ...]
    used_mib: int = 500

    @classmethod
    def of(cls, card: Card, count: int = 1) -> Machine:
        """A machine with equal cards."""
        return cls((card,) * count)

    @property
    def devices(self) -> tuple[FakeDevice, ...]:
        """The cards as whole devices."""
        return tuple(
            FakeDevice(
                index, card.name, _uuid("GPU", index), card.memory_mib * MIB, card.multiprocessors, card.capability
            )
            for index, card in enumerate(self.cards)
        )

    def instances(self, card: int) -> tuple[FakeDevice, ...]:
        """MIG instances of a card; empty if MIG is off."""
        whole = self.devices[card]
        return tuple(
            FakeDevice(
                card=card,
                name=f"{whole.name} MIG {profile}",
                uuid=_uuid("MIG", card, number),
                memory=_gigabytes(profile) * 1024**3,
                multiprocessors=int(profile.partition("g.")[0]) * (whole.multiprocessors // 8),
                capability=whole.capability,
            )
            for number, profile in enumerate(self.cards[card].instances)
        )

    def visible(self, environment: Mapping[str, str]) -> tuple[FakeDevice, ...]:
        """The devices that CUDA lets a process use: the entries of ``CUDA_VISIBLE_DEVICES`` before the first unknown
        entry.

        A process can use at most one MIG instance. A process that can use a MIG instance cannot use any whole card.
        """
        listed = environment.get("CUDA_VISIBLE_DEVICES")
        entries = [str(index) for index in range(len(self.cards))] if listed is None else listed.split(",")
        found: list[FakeDevice] = []
        for entry in map(str.strip, entries):
            device = self._named(entry)
            if device is None:
                break
            found.append(device)
        instances = [device for device in found if device.uuid.startswith("MIG-")]
        return tuple(instances[:1] or found)

    def _named(self, entry: str) -> FakeDevice | None:
        """The device that an entry of ``CUDA_VISIBLE_DEVICES`` selects; None if there is no such device. If the entry
        selects a card that is divided into instances, the device is the first instance of this card.
        """
        for device in self.devices:
            instances = self.instances(device.card)
            if entry == str(device.card) or (entry.startswith("GPU-") and device.uuid.startswith(entry)):
                return instances[0] if instances else device
            for instance in instances:
                if entry.startswith("MIG-") and instance.uuid.startswith(entry):
                    return instance
        return None


def _uuid(kind: str, *numbers: int) -> str:
    """The id of a device. The same arguments give the same id in every process."""
    return f"{kind}-{uuid.uuid5(uuid.NAMESPACE_OID, f'{kind} {_joined(numbers)}')}"


def _joined(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _gigabytes(profile: str) -> int:
    """The number of gigabytes that the name of a MIG profile states. The name is, for example, ``3g.40gb``."""
    return int(profile.partition(".")[2].partition("gb")[0])
